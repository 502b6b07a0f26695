/** What a virtio-user device is opened with, what it asks of its back-end by that, and what it can't be made of. */
import { isInterfaceName } from '../sys/index.ts';
import { features } from '../virtio/features.ts';
import { VirtioUserError } from './errors.ts';
import { VHOST_NET } from './vhost-net.ts';
import { VHOST_VDPA } from './vhost-vdpa.ts';

/** Everything that the driver can make use of, but for packed rings, which are asked for. */
export const DRIVER_FEATURES =
  features.VIRTIO_F_VERSION_1 |
  features.VIRTIO_F_ANY_LAYOUT |
  features.VIRTIO_F_INDIRECT_DESC |
  features.VIRTIO_F_EVENT_IDX |
  features.VIRTIO_F_IN_ORDER |
  features.VIRTIO_NET_F_MRG_RXBUF |
  features.VIRTIO_NET_F_MAC |
  features.VIRTIO_NET_F_MTU |
  features.VIRTIO_NET_F_STATUS |
  features.VIRTIO_NET_F_SPEED_DUPLEX |
  features.VHOST_USER_F_PROTOCOL_FEATURES;

/** What `offloads` asks for beside. */
export const DRIVER_OFFLOADS =
  features.VIRTIO_NET_F_CSUM |
  features.VIRTIO_NET_F_HOST_TSO4 |
  features.VIRTIO_NET_F_HOST_TSO6 |
  features.VIRTIO_NET_F_HOST_ECN |
  features.VIRTIO_NET_F_HOST_UFO |
  features.VIRTIO_NET_F_HOST_USO |
  features.VIRTIO_NET_F_GUEST_CSUM |
  features.VIRTIO_NET_F_GUEST_TSO4 |
  features.VIRTIO_NET_F_GUEST_TSO6 |
  features.VIRTIO_NET_F_GUEST_ECN |
  features.VIRTIO_NET_F_GUEST_UFO |
  features.VIRTIO_NET_F_GUEST_USO4 |
  features.VIRTIO_NET_F_GUEST_USO6;

/** What `control` asks for beside. */
export const DRIVER_CONTROL =
  features.VIRTIO_NET_F_CTRL_VQ |
  features.VIRTIO_NET_F_CTRL_RX |
  features.VIRTIO_NET_F_CTRL_VLAN |
  features.VIRTIO_NET_F_CTRL_MAC_ADDR |
  features.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS |
  features.VIRTIO_NET_F_GUEST_ANNOUNCE |
  features.VIRTIO_NET_F_RSS |
  features.VIRTIO_NET_F_HASH_REPORT;

const MAX_QUEUES = 128;
/** Bytes of the largest virtio-net header, and of the largest buffer that makes sense. */
export const MAX_HEADER = 12;
/** With hashes reported. */
const HASH_HEADER = 20;
const MAX_BUFFER = 1 << 20;

export interface VirtioUserOptions {
  /**
   * Path of the back-end's socket, or of ours with `role: 'server'`; or of a character device of the kernel,
   * `/dev/vhost-net` or `/dev/vhost-vdpa-0`.
   */
  path: string;
  /** `client` (default) connects; `server` listens and waits for the back-end to connect. */
  role?: 'client' | 'server';
  /** With `/dev/vhost-net`, the TAP on the other side, `tap0`; it is made where it isn't there. */
  interface?: string;
  /** Descriptors of each ring, 2 to 32768, of split rings a power of 2; default 256. */
  queueSize?: number;
  /** Queue pairs, 1 to 128; default 1. Rejects where the back-end has fewer. */
  queues?: number;
  /** Asks for packed rings (virtio 1.3, 2.8); default false. */
  packed?: boolean;
  /**
   * Asks for checksum and segmentation offloads, both ways: frames may be sent, and then come, with work left undone
   * (see `send` and `received`); default false.
   */
  offloads?: boolean;
  /**
   * Asks for the control queue, where the back-end owns it (see `control` of the device); default false, and true
   * for several queues of a vDPA device, which take one.
   */
  control?: boolean;
  /** Feature bits to ask for; default: all that the driver knows. */
  features?: bigint;
  /** Bytes of a buffer, at least 64; default 2048. Without mergeable buffers a larger frame doesn't arrive. */
  bufferLength?: number;
  /** Most bytes of a frame to send in one descriptor, more than the header; default: a whole buffer. */
  segmentLength?: number;
  /** Gives the virtio-net header of frames to send a descriptor of its own. */
  headerAlone?: boolean;
  /** Lets the back-end note which buffers it has in work, so that nothing is sent twice should it die; default false. */
  inflight?: boolean;
  /** Milliseconds to wait for the back-end, and for each of its answers; default 5000. */
  timeout?: number;
  /**
   * Connects again whenever the connection ends: at once, then with growing pauses, in milliseconds; default false,
   * and with true 100 to 5000. Then open() also waits `timeout` for a back-end that isn't there yet.
   */
  reconnect?: boolean | { initialDelay?: number; maxDelay?: number };
  /** The device's address, `52:54:00:12:34:56`; default: the back-end's, else a random one. */
  mac?: string;
}

/** The options with their defaults. */
export type Settings = Required<Omit<VirtioUserOptions, 'features' | 'reconnect' | 'mac'>> & {
  /** Feature bits that are asked for. */
  wanted: bigint;
  /** Milliseconds. */
  reconnect: { initialDelay: number; maxDelay: number } | undefined;
  mac: string | undefined;
};

/** Fills in the defaults. Throws a VirtioUserError for what no device can be made of. */
export function settle(options: VirtioUserOptions): Settings {
  const { queueSize = 256, queues = 1, packed = false, offloads = false, bufferLength = 2048 } = options;
  const { segmentLength = bufferLength, features: asked = DRIVER_FEATURES } = options;
  if (!Number.isInteger(packed ? queueSize : Math.log2(queueSize)) || queueSize < 2 || queueSize > 32768)
    throw new VirtioUserError(
      'BAD_OPTION',
      `queueSize ${queueSize}: a ${packed ? 'number' : 'power of 2'} from 2 to 32768 expected`,
    );
  if (!Number.isInteger(bufferLength) || bufferLength < 64 || bufferLength > MAX_BUFFER)
    throw new VirtioUserError(
      'BAD_OPTION',
      `bufferLength ${bufferLength}: 64 to ${MAX_BUFFER} bytes expected`,
    );
  if (!Number.isInteger(segmentLength) || segmentLength <= MAX_HEADER)
    throw new VirtioUserError(
      'BAD_OPTION',
      `segmentLength ${segmentLength}: more than the ${MAX_HEADER} bytes of the header expected`,
    );
  if (!Number.isInteger(queues) || queues < 1 || queues > MAX_QUEUES)
    throw new VirtioUserError('BAD_OPTION', `queues ${queues}: 1 to ${MAX_QUEUES} expected`);
  const { path, role = 'client', timeout = 5000, mac } = options;
  if (typeof path !== 'string' || path === '')
    throw new VirtioUserError('BAD_OPTION', 'path: a path expected');
  if (role !== 'client' && role !== 'server')
    throw new VirtioUserError('BAD_OPTION', `role ${role}: client or server expected`);
  if (!Number.isFinite(timeout) || timeout <= 0)
    throw new VirtioUserError('BAD_OPTION', `timeout ${timeout}: a number of milliseconds expected`);
  if (mac !== undefined && !/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(mac))
    throw new VirtioUserError('BAD_OPTION', `mac ${mac}: an address such as 52:54:00:12:34:56 expected`);
  const { interface: tap = '' } = options;
  if (path === VHOST_NET && !isInterfaceName(tap))
    throw new VirtioUserError('BAD_OPTION', `interface "${tap}": the name of a TAP, such as tap0, expected`);
  let wanted = asked;
  if (packed) wanted |= features.VIRTIO_F_RING_PACKED;
  if (offloads) wanted |= DRIVER_OFFLOADS;
  if (queues > 1) wanted |= features.VIRTIO_NET_F_MQ;
  const control = options.control || (queues > 1 && path.startsWith(VHOST_VDPA));
  if (control) wanted |= DRIVER_CONTROL;
  if (control && segmentLength <= HASH_HEADER)
    throw new VirtioUserError(
      'BAD_OPTION',
      `segmentLength ${segmentLength}: more than the ${HASH_HEADER} bytes of a header with a hash expected`,
    );
  return {
    path,
    role,
    interface: tap,
    queueSize,
    queues,
    packed,
    offloads,
    control,
    wanted,
    bufferLength,
    segmentLength: Math.min(segmentLength, bufferLength),
    headerAlone: options.headerAlone ?? false,
    inflight: options.inflight ?? false,
    timeout,
    reconnect: delaysOf(options.reconnect),
    mac: mac?.toLowerCase(),
  };
}

function delaysOf(reconnect: VirtioUserOptions['reconnect']): Settings['reconnect'] {
  if (!reconnect) return undefined;
  const { initialDelay = 100, maxDelay = 5000 } = reconnect === true ? {} : reconnect;
  if (!(initialDelay > 0 && initialDelay <= maxDelay && maxDelay < 2 ** 31))
    throw new VirtioUserError(
      'BAD_OPTION',
      `reconnect after ${initialDelay} to ${maxDelay} ms: growing numbers above 0 expected`,
    );
  return { initialDelay, maxDelay };
}
