/** The other end of the control socket, as the CLI uses it. What fails is told with what to do about it. */
import { type IncomingMessage, request } from 'node:http';
import type {
  AddressFilter,
  AddressSpec,
  Applied,
  BridgeChange,
  BridgeSpec,
  BridgeStatus,
  CaptureOptions,
  FdbEntry,
  GroupSpec,
  GroupsStatus,
  MirrorChange,
  MirrorSpec,
  MirrorStatus,
  PortChange,
  PortDetail,
  PortSpec,
  PortStatus,
  SwitchOptions,
  SwitchStatus,
} from '../switch/types.ts';
import { controlDirectory, controlPath, runningSwitches } from './path.ts';

/** Bytes of an answer: a full forwarding table is a tenth of it. */
const MAX_ANSWER = 64 * 1024 * 1024;
/** Milliseconds without a byte from the switch. */
const TIMEOUT = 30_000;

/** What a switch refused (its own code and field), or why none answers (`NO_SWITCH`, `NO_ANSWER`). */
export class ControlError extends Error {
  override readonly name = 'ControlError';
  readonly code: string;
  readonly field?: string;

  constructor(code: string, message: string, field?: string) {
    super(message);
    this.code = code;
    if (field !== undefined) this.field = field;
  }
}

/** Names a switch: by its name or by its control socket; by neither when only one runs. */
export interface Address {
  name?: string;
  control?: string;
}

/** Finds the switch. Throws ControlError `NO_SWITCH` when none runs here, or several do and none is named. */
export async function findSwitch(address: Address, directory = controlDirectory()): Promise<ControlClient> {
  const { name, control } = address;
  if (control !== undefined) return new ControlClient(control, `no switch listens on ${control}`);
  if (name !== undefined) {
    if (!/^[\w.-]+$/.test(name)) throw new ControlError('NO_SWITCH', `'${name}' is no name of a switch`);
    return new ControlClient(controlPath(name, directory), `no switch named '${name}' runs here`);
  }
  const names = await runningSwitches(directory);
  if (names.length > 1) {
    throw new ControlError(
      'NO_SWITCH',
      `several switches run here: choose one with --name ${names.join(' or --name ')}`,
    );
  }
  return new ControlClient(controlPath(names[0] ?? 'vireo', directory), 'no switch runs here');
}

/** `?key=value&…`, or nothing. */
function queryOf(filter: object): string {
  const given = Object.entries(filter).filter(([, value]) => value !== undefined);
  return given.length === 0
    ? ''
    : `?${new URLSearchParams(Object.fromEntries(given.map(([key, value]) => [key, String(value)])))}`;
}

/** Speaks to one switch; each call is one request. Every method throws ControlError. */
export class ControlClient {
  readonly path: string;
  readonly #absent: string;

  /** `absent` is what to say when nobody listens on the socket `path`. */
  constructor(path: string, absent: string) {
    this.path = path;
    this.#absent = absent;
  }

  status(): Promise<SwitchStatus> {
    return this.#call('GET', '/v1/status');
  }

  ports(): Promise<PortStatus[]> {
    return this.#call('GET', '/v1/ports');
  }

  port(name: string): Promise<PortDetail> {
    return this.#call('GET', `/v1/ports/${encodeURIComponent(name)}`);
  }

  addPort(spec: PortSpec): Promise<PortDetail> {
    return this.#call('POST', '/v1/ports', spec);
  }

  /** Sets fields of a port anew. */
  setPort(name: string, change: PortChange): Promise<PortDetail> {
    return this.#call('PATCH', `/v1/ports/${encodeURIComponent(name)}`, change);
  }

  removePort(name: string): Promise<void> {
    return this.#call('DELETE', `/v1/ports/${encodeURIComponent(name)}`);
  }

  bridges(): Promise<BridgeStatus[]> {
    return this.#call('GET', '/v1/bridges');
  }

  bridge(name: string): Promise<BridgeStatus> {
    return this.#call('GET', `/v1/bridges/${encodeURIComponent(name)}`);
  }

  addBridge(spec: BridgeSpec): Promise<BridgeStatus> {
    return this.#call('POST', '/v1/bridges', spec);
  }

  /** Sets fields of a bridge anew. */
  setBridge(name: string, change: BridgeChange): Promise<BridgeStatus> {
    return this.#call('PATCH', `/v1/bridges/${encodeURIComponent(name)}`, change);
  }

  removeBridge(name: string): Promise<void> {
    return this.#call('DELETE', `/v1/bridges/${encodeURIComponent(name)}`);
  }

  mirrors(): Promise<MirrorStatus[]> {
    return this.#call('GET', '/v1/mirrors');
  }

  mirror(name: string): Promise<MirrorStatus> {
    return this.#call('GET', `/v1/mirrors/${encodeURIComponent(name)}`);
  }

  addMirror(spec: MirrorSpec): Promise<MirrorStatus> {
    return this.#call('POST', '/v1/mirrors', spec);
  }

  setMirror(name: string, change: MirrorChange): Promise<MirrorStatus> {
    return this.#call('PATCH', `/v1/mirrors/${encodeURIComponent(name)}`, change);
  }

  removeMirror(name: string): Promise<void> {
    return this.#call('DELETE', `/v1/mirrors/${encodeURIComponent(name)}`);
  }

  config(): Promise<SwitchOptions> {
    return this.#call('GET', '/v1/config');
  }

  /** Brings the switch to this configuration. */
  apply(options: SwitchOptions): Promise<Applied> {
    return this.#call('PUT', '/v1/config', options);
  }

  fdb(filter: AddressFilter = {}): Promise<FdbEntry[]> {
    return this.#call('GET', `/v1/fdb${queryOf(filter)}`);
  }

  /** Forgets the addresses learned that the filter has, with `static` those that were entered too. */
  flushFdb(filter: AddressFilter & { static?: boolean } = {}): Promise<{ flushed: number }> {
    return this.#call('DELETE', `/v1/fdb${queryOf(filter)}`);
  }

  /** Enters an address for good. */
  addAddress(spec: AddressSpec): Promise<AddressSpec> {
    return this.#call('POST', '/v1/fdb', spec);
  }

  /** Takes away an address that was entered. */
  removeAddress(mac: string, filter: AddressFilter = {}): Promise<void> {
    return this.#call('DELETE', `/v1/fdb/${encodeURIComponent(mac)}${queryOf(filter)}`);
  }

  groups(filter: AddressFilter = {}): Promise<GroupsStatus> {
    return this.#call('GET', `/v1/groups${queryOf(filter)}`);
  }

  /** Enters a port into a group for good. */
  addGroup(spec: GroupSpec): Promise<GroupSpec> {
    return this.#call('POST', '/v1/groups', spec);
  }

  /** Takes ports out of a group that they were entered into. */
  removeGroup(group: string, filter: AddressFilter = {}): Promise<void> {
    return this.#call('DELETE', `/v1/groups/${encodeURIComponent(group)}${queryOf(filter)}`);
  }

  /** Frames as pcapng, until the capture ends; `stop` lets it end with what has come by then. */
  async capture(options: CaptureOptions): Promise<{ stream: AsyncIterable<Buffer>; stop(): Promise<void> }> {
    const query = new URLSearchParams(
      Object.entries(options)
        .filter(([, value]) => value !== undefined)
        .map(([key, value]): [string, string] => [key, String(value)]),
    );
    const response = await this.#open('GET', `/v1/capture?${query}`, undefined, 0);
    if ((response.statusCode ?? 0) >= 300) {
      this.#answer(response.statusCode ?? 0, await this.#text(response));
      throw this.#noAnswer(`it answered with status ${response.statusCode}`);
    }
    const id = response.headers['capture-id'];
    const explain = (error: Error) => this.#explain(error);
    return {
      stream: (async function* () {
        try {
          for await (const chunk of response as AsyncIterable<Buffer>) yield chunk;
        } catch (error) {
          throw explain(error as Error);
        }
      })(),
      stop: () => this.#call('DELETE', `/v1/capture/${id}`),
    };
  }

  async #call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const response = await this.#open(method, path, text, TIMEOUT);
    return this.#answer(response.statusCode ?? 0, await this.#text(response)) as T;
  }

  /** What an answer says. Throws ControlError for one that refuses, and for one that no switch gives. */
  #answer(status: number, text: string): unknown {
    let answer: unknown;
    try {
      answer = text === '' ? undefined : JSON.parse(text);
    } catch {
      throw this.#noAnswer('what listens there is no switch');
    }
    if (status < 300) return answer;
    const { error } = (answer ?? {}) as { error?: { code: string; message: string; field?: string } };
    if (typeof error?.message !== 'string') throw this.#noAnswer(`it answered with status ${status}`);
    throw new ControlError(error.code, error.message, error.field);
  }

  /** The head of the answer to a request, after which `timeout` milliseconds (0: any) may pass without a byte. */
  #open(method: string, path: string, body: string | undefined, timeout: number): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const headers =
        body === undefined
          ? {}
          : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) };
      // No agent: a connection that is kept would keep the process.
      const call = request({ socketPath: this.path, method, path, headers, agent: false, timeout });
      call.on('timeout', () => call.destroy(this.#noAnswer('it has been silent for too long')));
      call.on('error', (error) => reject(this.#explain(error)));
      call.on('response', resolve);
      call.end(body);
    });
  }

  async #text(response: IncomingMessage): Promise<string> {
    try {
      const chunks: Buffer[] = [];
      let size = 0;
      for await (const chunk of response as AsyncIterable<Buffer>) {
        size += chunk.length;
        if (size > MAX_ANSWER) throw this.#noAnswer('its answer is too large');
        chunks.push(chunk);
      }
      return Buffer.concat(chunks).toString();
    } catch (error) {
      throw this.#explain(error as Error);
    }
  }

  #noAnswer(why: string): ControlError {
    return new ControlError('NO_ANSWER', `no answer from the control socket ${this.path}: ${why}`);
  }

  #explain(error: NodeJS.ErrnoException): ControlError {
    if (error instanceof ControlError) return error;
    if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') {
      const todo = 'start one with `vireo up`, or name its control socket with --control';
      return new ControlError('NO_SWITCH', `${this.#absent}: ${todo}`);
    }
    if (error.code === 'EACCES' || error.code === 'EPERM') {
      return this.#noAnswer('only its owner and root may use it; run this as that user');
    }
    if (error.code === 'ECONNRESET' || error.code?.startsWith('HPE_'))
      return this.#noAnswer('what listens there is no switch, or it has just ended');
    return this.#noAnswer(error.message);
  }
}
