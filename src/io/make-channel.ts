/** The channel for what is at the other end. */
import {
  type Channel,
  type EndSetup,
  FileChannel,
  MessageChannel,
  type QueueSetup,
  SinkChannel,
  StreamChannel,
  type ThreadContext,
} from './channel.ts';
import { PacketChannel } from './packet-channel.ts';
import { RecordChannel } from './record.ts';
import { ReplayChannel } from './replay.ts';
import { XdpChannel } from './xdp-channel.ts';

export function makeChannel(context: ThreadContext, queue: QueueSetup, end: EndSetup): Channel {
  switch (end.kind) {
    case 'file':
      return new FileChannel(context, queue, end.fd);
    case 'messages':
      return new MessageChannel(context, queue, end.fd, end.sendFd ?? end.fd);
    case 'stream':
      return new StreamChannel(context, queue, end);
    case 'replay':
      return new ReplayChannel(context, queue, end);
    case 'record':
      return new RecordChannel(context, queue, end);
    case 'packet':
      return new PacketChannel(context, queue, end);
    case 'xdp':
      return new XdpChannel(context, queue, end);
    case 'sink':
      return new SinkChannel(context, queue);
  }
}
