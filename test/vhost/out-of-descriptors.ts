/** Run with few descriptors allowed: prints why a session ends that is passed one when there is no room for it. */
import { closeFd, eventfd, isSystemError, Poller } from '../../src/sys/index.ts';
import * as m from '../../src/vhost/messages.ts';
import { guest, serve } from './harness.ts';

const poller = new Poller();
const g = guest();
const { end, ended } = serve(poller);
const filler: number[] = [];
try {
  for (;;) filler.push(eventfd());
} catch (error) {
  if (!isSystemError(error, 'EMFILE')) throw error;
}
end.message(m.requests.SET_MEM_TABLE, m.encodeMemoryTable([g.region]), { fds: [g.ram] });
const reason = await ended();
for (const fd of filler) closeFd(fd);
console.log(reason);
end.close();
g.close();
await poller.close();
