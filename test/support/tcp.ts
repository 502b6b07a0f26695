/** The kernel's TCP as a peer, in the network namespace of this program. */
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';

/** Listens; each connection's bytes are hashed, and it is told by `next` what came. */
export class TcpSink {
  readonly #server: Server;
  readonly #results: Promise<{ bytes: number; md5: string }>[] = [];

  private constructor(server: Server) {
    this.#server = server;
    server.on('connection', (socket) => {
      this.#results.push(take(socket));
      server.emit('taken');
    });
  }

  static async listen(address: string, port: number): Promise<TcpSink> {
    const server = createServer();
    server.listen(port, address);
    await once(server, 'listening');
    return new TcpSink(server);
  }

  /** What came by the next connection, once the other side has ended it. */
  async next(): Promise<{ bytes: number; md5: string }> {
    if (this.#results.length === 0) await once(this.#server, 'taken');
    return this.#results.shift()!;
  }

  close(): void {
    this.#server.close();
  }
}

async function take(socket: Socket): Promise<{ bytes: number; md5: string }> {
  const hash = createHash('md5');
  let bytes = 0;
  for await (const piece of socket) {
    hash.update(piece);
    bytes += piece.length;
  }
  return { bytes, md5: hash.digest('hex') };
}

/** Gives whoever connects the same random bytes, and their hash. */
export class TcpSource {
  readonly md5: string;
  readonly #server: Server;

  private constructor(server: Server, md5: string) {
    this.#server = server;
    this.md5 = md5;
  }

  static async listen(address: string, port: number, bytes: number): Promise<TcpSource> {
    const data = randomBytes(bytes);
    const server = createServer((socket) => {
      socket.on('error', () => {});
      socket.end(data);
    });
    server.listen(port, address);
    await once(server, 'listening');
    return new TcpSource(server, createHash('md5').update(data).digest('hex'));
  }

  close(): void {
    this.#server.close();
  }
}
