/** Something done in the middle of a vhost-user session: when the front-ends of this process have said so much. */
import { Connection } from '../../src/vhost/connection.ts';

/** Runs `action` once, `delay` milliseconds after message number `number` (from 0) was sent; returns how to undo it. */
export function atMessage(number: number, delay: number, action: () => void): () => void {
  const { send } = Connection.prototype;
  let left = number;
  Connection.prototype.send = function (...message) {
    const sent = send.apply(this, message);
    if (left-- === 0) {
      // The other end may be before it, in the middle of it, or done: nobody lets the event loop turn meanwhile.
      const moment = performance.now() + delay;
      while (performance.now() < moment);
      action();
    }
    return sent;
  };
  return () => {
    Connection.prototype.send = send;
  };
}
