/** The one error class of the switch: a code for programs, a sentence for people. */

/**
 * `NO_SUCH_PORT`, `PORT_EXISTS`: a port's name. `NO_SUCH_BRIDGE`, `BRIDGE_EXISTS`: a bridge's. `NO_SUCH_MIRROR`,
 * `MIRROR_EXISTS`: a mirror's. `NO_SUCH_ADDRESS`, `NO_SUCH_GROUP`: no such address was entered, no port into such a
 * group. `BAD_SPEC`: a port or an option is wrongly described.
 * `LIMIT`: the switch holds no more of it. `SOCKET`: a socket's path, or a device, can't be used. `IN_USE`: a port
 * whose device the kernel uses can't be removed, nor a bridge that ports are on. `NO_SUCH_CAPTURE`: a capture's number.
 */
export type SwitchErrorCode =
  | 'NO_SUCH_PORT'
  | 'NO_SUCH_CAPTURE'
  | 'PORT_EXISTS'
  | 'NO_SUCH_BRIDGE'
  | 'BRIDGE_EXISTS'
  | 'NO_SUCH_MIRROR'
  | 'MIRROR_EXISTS'
  | 'NO_SUCH_ADDRESS'
  | 'NO_SUCH_GROUP'
  | 'BAD_SPEC'
  | 'LIMIT'
  | 'SOCKET'
  | 'IN_USE';

/** What the switch refuses. `field` names the field at fault where there is one, e.g. `ports[0].role`. */
export class SwitchError extends Error {
  override readonly name = 'SwitchError';
  readonly code: SwitchErrorCode;
  readonly field?: string;

  constructor(code: SwitchErrorCode, message: string, field?: string) {
    super(message);
    this.code = code;
    if (field !== undefined) this.field = field;
  }
}

/** Nothing new comes to a switch that ends. */
export const closingError = () => new SwitchError('LIMIT', 'the switch is closing');
