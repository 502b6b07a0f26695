/**
 * The control socket: HTTP/1.1 with JSON on a unix socket, for the CLI and for `curl --unix-socket`. What there is to
 * ask for is in routes.ts.
 *
 * What fails is answered with `{ "error": { "code", "message", "field"? } }`. The socket's mode lets in its
 * owner alone. Even so a client is not trusted: sizes, times and connections are bounded, and nothing that it
 * sends reaches the switch unchecked.
 */
import { lstatSync, mkdirSync, unlinkSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { dirname } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { SwitchError, type SwitchErrorCode } from '../switch/errors.ts';
import type { CaptureStream } from '../switch/types.ts';
import { controlDirectory, probe } from './path.ts';
import { HttpError, type Reply, ROUTES, type SwitchControl } from './routes.ts';

/** Bounds of a client; the defaults suit people and scripts. */
export interface ControlLimits {
  /** Milliseconds for the head of a request; default 5,000. */
  headersTimeout?: number;
  /** Milliseconds for a whole request; default 10,000. */
  requestTimeout?: number;
  /** Milliseconds without a byte either way; default 30,000. */
  idleTimeout?: number;
  /** Connections at a time; default 32. */
  connections?: number;
}

/** A control socket that listens. */
export interface ControlServer {
  readonly path: string;
  /** Ends all connections and removes the socket. */
  close(): Promise<void>;
}

const STATUS_OF: Record<SwitchErrorCode, number> = {
  BAD_SPEC: 400,
  NO_SUCH_PORT: 404,
  NO_SUCH_CAPTURE: 404,
  PORT_EXISTS: 409,
  NO_SUCH_BRIDGE: 404,
  BRIDGE_EXISTS: 409,
  NO_SUCH_MIRROR: 404,
  MIRROR_EXISTS: 409,
  NO_SUCH_ADDRESS: 404,
  NO_SUCH_GROUP: 404,
  LIMIT: 409,
  SOCKET: 409,
  IN_USE: 409,
};

function serve(control: SwitchControl, request: IncomingMessage): Reply | Promise<Reply> {
  const [, path = '', query = ''] = /^([^?]*)\??(.*)$/s.exec(request.url ?? '') ?? [];
  for (const route of ROUTES) {
    const match = route.path.exec(path);
    if (match === null) continue;
    const method = request.method ?? '';
    const handler = Object.hasOwn(route.methods, method) ? route.methods[method] : undefined;
    if (handler === undefined) {
      const allow = Object.keys(route.methods).join(', ');
      throw new HttpError(405, 'METHOD_NOT_ALLOWED', `${path} takes ${allow}, not ${method}`, { allow });
    }
    const parameters = new URLSearchParams(query);
    for (const key of parameters.keys()) {
      // A slip must not widen what a request does: without its parameter, a flush empties the whole table.
      if (route.query?.includes(key) && parameters.getAll(key).length === 1) continue;
      throw new HttpError(
        400,
        'BAD_REQUEST',
        `${path} takes no parameter ${JSON.stringify(key)}, or takes it once`,
      );
    }
    return handler({ control, request, name: decode(match[1] ?? ''), query: parameters });
  }
  throw new HttpError(
    404,
    'NOT_FOUND',
    'no such path: there are /v1/status, /v1/ports, /v1/ports/NAME, /v1/bridges, /v1/bridges/NAME, /v1/config, /v1/fdb, /v1/fdb/MAC, /v1/groups, /v1/groups/GROUP, /v1/mirrors, /v1/mirrors/NAME and /v1/capture',
  );
}

function decode(name: string): string {
  try {
    return decodeURIComponent(name);
  } catch {
    throw new HttpError(400, 'BAD_REQUEST', 'the name is wrongly encoded in the path');
  }
}

/** The answer to whatever a handler throws. */
function refusal(error: unknown): Reply {
  const told = (status: number, code: string, message: string, field?: string) => ({
    status,
    body: { error: { code, message, field } },
  });
  if (error instanceof HttpError) {
    return { ...told(error.status, error.code, error.message), headers: error.headers };
  }
  if (error instanceof SwitchError) {
    return told(STATUS_OF[error.code] ?? 400, error.code, error.message, error.field);
  }
  return told(500, 'INTERNAL', error instanceof Error ? error.message : String(error));
}

/**
 * Answers. What is left of the request's body is read and thrown away, until `requestTimeout`: a client that is
 * still writing gets the answer, and not a broken pipe.
 */
function send(request: IncomingMessage, response: ServerResponse, { status, body, headers }: Reply): void {
  const text = body === undefined ? '' : `${JSON.stringify(body)}\n`;
  response.writeHead(status, {
    ...(text === '' ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
    ...headers,
  });
  response.end(request.method === 'HEAD' ? '' : text);
  request.resume();
}

async function answer(
  control: SwitchControl,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  // A client may leave at any moment; what it asked for is done or not, and nobody waits for the answer.
  request.on('error', () => {});
  response.on('error', () => {});
  try {
    const reply = await serve(control, request);
    if (reply.capture === undefined) send(request, response, reply);
    else await sendCapture(request, response, reply, reply.capture);
  } catch (error) {
    if (!response.headersSent) send(request, response, refusal(error));
  }
}

/** Sends a capture as fast as the client takes it, which may be silent for as long as no frame comes. */
async function sendCapture(
  request: IncomingMessage,
  response: ServerResponse,
  { status, headers }: Reply,
  capture: CaptureStream,
): Promise<void> {
  const { socket } = request;
  socket.setTimeout(0);
  response.on('close', () => void capture.close());
  response.writeHead(status, { ...headers, connection: 'close' });
  request.resume();
  try {
    await pipeline(Readable.from(capture.stream(), { highWaterMark: 1 }), response);
  } catch {
    // The client has left.
  } finally {
    await capture.close();
  }
}

/** Bytes that are no request, or one that takes too long: answered once, then the connection ends. */
function refuseBytes(error: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy();
    return;
  }
  const [line, code, message] =
    error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
      ? ['408 Request Timeout', 'TIMEOUT', 'the request took too long']
      : error.code === 'HPE_HEADER_OVERFLOW'
        ? ['431 Request Header Fields Too Large', 'TOO_LARGE', "the request's head is too large"]
        : ['400 Bad Request', 'BAD_REQUEST', 'expected a request in HTTP/1.1'];
  const body = `${JSON.stringify({ error: { code, message } })}\n`;
  const head = `HTTP/1.1 ${line}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\nconnection: close`;
  socket.end(`${head}\r\n\r\n${body}`, () => socket.destroy());
}

/** True when nobody but this user and root can change what lies in a directory. */
function isPrivate(directory: string): boolean {
  const { uid, mode } = lstatSync(directory);
  return (uid === 0 || uid === process.getuid?.()) && (mode & 0o022) === 0;
}

/** Makes way for a socket at `path`. Throws SwitchError `SOCKET` when something else has the place. */
async function takePlace(path: string, name: string): Promise<void> {
  if (Buffer.byteLength(path) > 107) {
    throw new SwitchError(
      'SOCKET',
      `the control socket's path has more than 107 bytes: ${path}: give a shorter --control`,
    );
  }
  const refuse = (why: string) =>
    new SwitchError('SOCKET', `the control socket ${path} can't be used: ${why}`);
  try {
    // Whoever may connect controls the switch: the directory is its owner's alone, when we make it.
    const directory = dirname(path);
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    if (directory === controlDirectory() && !isPrivate(directory)) {
      throw refuse('others may write to its directory; name another path with --control');
    }
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (stat === undefined) return;
    if (!stat.isSocket()) throw refuse('it is no socket; name another path with --control');
    if ((await probe(path)) === 'live') {
      throw refuse(`a switch runs there; name this one other than '${name}' with --name, or stop that one`);
    }
    // Left by a process that was killed.
    unlinkSync(path);
  } catch (error) {
    throw error instanceof SwitchError ? error : refuse((error as Error).message);
  }
}

/** Listens on `path` for requests to `control`. Throws SwitchError `SOCKET` when that path can't be used. */
export async function serveControl(
  control: SwitchControl,
  path: string,
  limits: ControlLimits = {},
): Promise<ControlServer> {
  await takePlace(path, control.name);
  const { headersTimeout = 5_000, requestTimeout = 10_000, idleTimeout = 30_000, connections = 32 } = limits;
  const server = createServer({
    headersTimeout,
    requestTimeout,
    connectionsCheckingInterval: Math.min(500, headersTimeout),
    maxHeaderSize: 16 * 1024,
  });
  server.maxConnections = connections;
  server.timeout = idleTimeout;
  server.on('clientError', refuseBytes);
  server.on('request', (request, response) => void answer(control, request, response));
  await listen(server, path);
  return { path, close: () => close(server) };
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error) => {
      reject(new SwitchError('SOCKET', `the control socket ${path} can't be used: ${error.message}`));
    });
    // Never open to others, not even between bind and chmod.
    const umask = process.umask(0o177);
    server.listen(path, () => {
      server.removeAllListeners('error');
      // Out of descriptors, say: those who wait are served when there are some again.
      server.on('error', () => {});
      resolve();
    });
    process.umask(umask);
  });
}

function close(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}
