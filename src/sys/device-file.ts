/**
 * Character devices of the kernel, opened for control. What is behind one may take its time, or wait for another
 * process (a device in userspace): so nothing here blocks this thread, and every call has a limit.
 */
import { close, open, write } from 'node:fs';
import { promisify } from 'node:util';
import { SystemError } from './errors.ts';
import { ioctlAsync } from './ioctl.ts';

export interface DeviceFileOptions {
  /** What to do where the device can't be opened, by the code of the error: `ENOENT: 'run "modprobe tun"'`. */
  advice: Readonly<Record<string, string>>;
  /** Milliseconds that a call may take. */
  timeout: number;
}

export class DeviceFile {
  readonly path: string;
  readonly fd: number;
  readonly #timeout: number;

  private constructor(path: string, fd: number, timeout: number) {
    this.path = path;
    this.fd = fd;
    this.#timeout = timeout;
  }

  /** Opens it for reading and writing. Rejects with a SystemError that carries the advice. */
  static async open(path: string, { advice, timeout }: DeviceFileOptions): Promise<DeviceFile> {
    const opening = promisify(open)(path, 'r+').catch((error: NodeJS.ErrnoException) => {
      const code = error.code ?? 'EIO';
      throw new SystemError('open', code, path, advice[code]);
    });
    try {
      return new DeviceFile(path, await inTime(opening, path, 'open', timeout), timeout);
    } catch (error) {
      // It may still come, and nobody waits for it.
      opening.then((fd) => close(fd, () => {})).catch(() => {});
      throw error;
    }
  }

  /** `name` is the request's, for errors; `argument` must not be touched until the promise settles. */
  async ioctl(name: string, request: number, argument: Uint8Array): Promise<number> {
    const call = ioctlAsync(this.fd, request, argument).catch((error: unknown) => {
      throw error instanceof SystemError ? new SystemError(name, error.code, this.path) : error;
    });
    return inTime(call, this.path, name, this.#timeout);
  }

  /** Writes a message in one piece; `name` is what it is, for errors. */
  async write(name: string, message: Uint8Array): Promise<void> {
    const call = promisify(write)(this.fd, message).catch((error: NodeJS.ErrnoException) => {
      throw new SystemError(name, error.code ?? 'EIO', this.path);
    });
    await inTime(call, this.path, name, this.#timeout);
  }

  /** Closes it; a call that still waits keeps the device until it is answered. */
  close(): Promise<void> {
    return promisify(close)(this.fd).catch(() => {});
  }
}

function inTime<T>(call: Promise<T>, path: string, name: string, timeout: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const late = () => reject(new Error(`${name}(${path}): no answer within ${timeout} ms`));
    const timer = setTimeout(late, timeout);
    call.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
