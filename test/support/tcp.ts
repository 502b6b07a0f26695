/** The kernel's TCP as a peer, in the network namespace of this program. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
import type { TestContext } from 'node:test';
import type { Namespace } from './network.ts';

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

/** The far end of two connections: the MD5 of what it sends to a port of ours, and of what it gets from another. */
interface FarEnd {
  sendTo(port: number): Promise<string>;
  hashFrom(port: number): Promise<string>;
}

/** So many random bytes come whole, one way and then the other, between a far end and `address`, which is ours. */
export async function crossWhole(t: TestContext, address: string, bytes: number, end: FarEnd): Promise<void> {
  const sink = await TcpSink.listen(address, 5001);
  t.after(() => sink.close());
  const came = sink.next();
  const sent = await end.sendTo(5001);
  assert.deepEqual(await came, { bytes, md5: sent });
  const source = await TcpSource.listen(address, 5002, bytes);
  t.after(() => source.close());
  assert.equal(await end.hashFrom(5002), source.md5);
}

/** A program in another namespace as the far end of connections to `address`. */
export function endIn(there: Namespace, address: string, bytes: number): FarEnd {
  const run = async (program: string) => {
    const child = there.start(process.execPath, '-e', program);
    assert.equal(await child.exited, 0, child.output);
    return child.output.trim();
  };
  const setUp = `
    const { createHash, randomBytes } = require('node:crypto');
    const { connect } = require('node:net');
    const hash = createHash('md5');`;
  return {
    sendTo: (port) =>
      run(`${setUp}
        const data = randomBytes(${bytes});
        connect(${port}, '${address}').end(data);
        console.log(hash.update(data).digest('hex'));`),
    hashFrom: (port) =>
      run(`${setUp}
        connect(${port}, '${address}')
          .on('data', (piece) => hash.update(piece))
          .on('end', () => console.log(hash.digest('hex')));`),
  };
}
