/** A capture that is written to a file until it is closed: what a mirror to a file is. */
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { Capture } from './capture.ts';

/** Frames of others are for nobody but the user. */
const MODE = 0o600;
/** A pipe that nobody reads would block: it is found out to be no file then. */
const FLAGS = constants.O_WRONLY | constants.O_CREAT | constants.O_NONBLOCK;

/** Opens a file to be written anew. Rejects with an Error that says why it can't be. */
export async function openAnew(path: string): Promise<FileHandle> {
  const file = await open(path, FLAGS, MODE);
  try {
    if (!(await file.stat()).isFile()) throw new Error('it is no file');
    await file.truncate();
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}

export class CaptureFile {
  readonly capture: Capture;
  readonly #done: Promise<void>;
  /** Why no more is written; null: more is. */
  error: string | null = null;

  /** Takes the file, and the capture. */
  constructor(capture: Capture, file: FileHandle) {
    this.capture = capture;
    const written = pipeline(Readable.from(capture.stream(), { highWaterMark: 1 }), file.createWriteStream());
    this.#done = written.catch(async (error: Error) => {
      this.error = error.message;
      await capture.close();
    });
  }

  /** Ends it; resolves when all that has come is in the file. */
  async close(): Promise<void> {
    this.capture.stop();
    await this.#done;
  }
}
