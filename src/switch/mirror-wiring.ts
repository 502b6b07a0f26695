/**
 * Brings mirrors and ports together as both come and go, with what that changes elsewhere: a port that gets copies is
 * on no bridge any more, and no capture of all ports looks at it.
 */
import type { Choice } from '../capture/capture.ts';
import { CaptureFile, openAnew } from '../capture/file.ts';
import type { Rstp } from '../rstp/rstp.ts';
import type { Workers } from '../workers/workers.ts';
import type { BridgedPorts } from './bridged-ports.ts';
import type { Captures } from './captures.ts';
import { SwitchError } from './errors.ts';
import type { Fdb } from './fdb.ts';
import { type Mirrors, targetOf } from './mirrors.ts';
import type { PortTable } from './port-table.ts';
import { changeMirrorSpec } from './spec.ts';
import type { MirrorChange, MirrorSpec } from './types.ts';

interface Options {
  workers: Workers;
  ports: PortTable;
  bridged: BridgedPorts;
  fdb: Fdb;
  rstp: Rstp;
  mirrors: Mirrors;
  captures: Captures;
  /** What a port has no room for. */
  onError(port: string, error: string): void;
}

export class MirrorWiring {
  readonly #options: Options;

  constructor(options: Options) {
    this.#options = options;
  }

  /** As Switch.addMirror(). */
  async add(spec: MirrorSpec): Promise<void> {
    const { mirrors, ports } = this.#options;
    const check = () => mirrors.check(spec, ports.specs());
    check();
    const path = targetOf(spec).file;
    const file = path === undefined ? undefined : await this.#openFile(path, mirrors.choice(spec));
    try {
      // Others may have come while the file was opened.
      check();
      mirrors.add(spec, file);
      await this.#wire();
    } catch (error) {
      if (mirrors.list().includes(spec)) await this.remove(spec.name);
      else await file?.close();
      if (error instanceof SwitchError) throw error;
      throw new SwitchError('LIMIT', `mirror ${spec.name}: ${(error as Error).message}`);
    }
  }

  /** As Switch.setMirror(). */
  async set(name: string, change: MirrorChange): Promise<void> {
    const { mirrors, ports } = this.#options;
    const before = mirrors.get(name);
    const spec = changeMirrorSpec(before, change);
    const check = () => mirrors.checkChange(spec, ports.specs());
    check();
    const path = before.to === spec.to ? undefined : targetOf(spec).file;
    const file = path === undefined ? undefined : await this.#openFile(path, mirrors.choice(spec));
    let undo: (() => void) | undefined;
    try {
      // Others may have come while the file was opened.
      check();
      const set = mirrors.set(spec, file);
      undo = set.undo;
      await this.#wire();
      await set.former?.close();
    } catch (error) {
      undo?.();
      if (undo) await this.#wire();
      await file?.close();
      if (error instanceof SwitchError) throw error;
      throw new SwitchError('LIMIT', `mirror ${name}: ${(error as Error).message}`);
    }
  }

  async #openFile(path: string, choice: Choice): Promise<CaptureFile> {
    const file = await openAnew(path).catch((error: Error) => {
      throw new SwitchError('SOCKET', `to: ${path} can't be written: ${error.message}`, 'to');
    });
    try {
      return new CaptureFile(await this.#options.captures.start({ port: 'any' }, choice), file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** As Switch.removeMirror(). */
  async remove(name: string): Promise<void> {
    await this.#options.mirrors.remove(name);
    await this.#wire();
  }

  /** Rejects with ArenaFullError. */
  async #wire(): Promise<void> {
    const { workers, ports, bridged, fdb, rstp, mirrors, captures } = this.#options;
    const entries = ports.list();
    const quiesce = () => workers.quiesce();
    bridged.count();
    const fresh = mirrors.wire(entries);
    for (const { spec } of fresh) rstp.leave(spec.name);
    await bridged.span();
    for (const { rules } of entries) await rules.settle();
    await mirrors.settle(quiesce);
    if (fresh.length > 0) {
      // A burst in work learns addresses where nobody is to be any more.
      await quiesce();
      for (const { slot } of fresh) fdb.forget(slot);
    }
    await captures.review();
  }

  /** A port has come, gone or changed. Without room for that it goes without. */
  async rewire(port: string): Promise<void> {
    if (this.#options.mirrors.list().length === 0) return;
    try {
      await this.#wire();
    } catch (error) {
      this.#options.onError(port, `not mirrored: ${(error as Error).message}`);
    }
  }
}
