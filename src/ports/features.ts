/**
 * What a port offers its guest, one line a word: the word that `features=` takes, the feature bits behind it, and
 * the option of QEMU's device that asks for them where there is one.
 *
 * A choice is words with a sign, separated by commas: `-packed,-in-order,+x`. It changes what is offered by
 * default; the last of two that contradict each other wins.
 */
import {
  type FeatureName,
  features,
  type VhostProtocolFeatureName,
  vhostProtocolFeatures,
} from '../virtio/features.ts';

/** `default`: unless `-word`. `asked`: with `+word` only. `control`: with ctrl-vq, unless `-word`. */
type Offer = 'default' | 'asked' | 'control';

interface VirtioLine {
  word: string;
  names: readonly FeatureName[];
  offer: Offer;
  /** What to say to QEMU's device where the guest did not acknowledge it. */
  option?: string | undefined;
}

/** What a port says of its device; a device that says something has a configuration space. */
export interface OwnConfiguration {
  features?: string | undefined;
  mac?: string | undefined;
  mtu?: number | undefined;
  speed?: number | undefined;
}

const virtio = (word: string, names: FeatureName[], offer: Offer, option?: string): VirtioLine => ({
  word,
  names,
  offer,
  option,
});

/** In the order in which `vireo port show` lists what is missing. */
const VIRTIO: readonly VirtioLine[] = [
  virtio('version-1', ['VIRTIO_F_VERSION_1'], 'default', 'disable-modern=off'),
  virtio('any-layout', ['VIRTIO_F_ANY_LAYOUT'], 'default'),
  virtio('mrg-rxbuf', ['VIRTIO_NET_F_MRG_RXBUF'], 'default', 'mrg_rxbuf=on'),
  virtio('indirect', ['VIRTIO_F_INDIRECT_DESC'], 'default', 'indirect_desc=on'),
  virtio('event-idx', ['VIRTIO_F_EVENT_IDX'], 'default', 'event_idx=on'),
  virtio('in-order', ['VIRTIO_F_IN_ORDER'], 'default', 'in_order=on'),
  virtio('packed', ['VIRTIO_F_RING_PACKED'], 'default', 'packed=on'),
  virtio('mtu', ['VIRTIO_NET_F_MTU'], 'default'),
  virtio('csum', ['VIRTIO_NET_F_CSUM', 'VIRTIO_NET_F_GUEST_CSUM'], 'default', 'csum=on,guest_csum=on'),
  virtio(
    'tso4',
    ['VIRTIO_NET_F_HOST_TSO4', 'VIRTIO_NET_F_GUEST_TSO4'],
    'default',
    'host_tso4=on,guest_tso4=on',
  ),
  virtio(
    'tso6',
    ['VIRTIO_NET_F_HOST_TSO6', 'VIRTIO_NET_F_GUEST_TSO6'],
    'default',
    'host_tso6=on,guest_tso6=on',
  ),
  virtio('ecn', ['VIRTIO_NET_F_HOST_ECN', 'VIRTIO_NET_F_GUEST_ECN'], 'default', 'host_ecn=on,guest_ecn=on'),
  virtio('ufo', ['VIRTIO_NET_F_HOST_UFO', 'VIRTIO_NET_F_GUEST_UFO'], 'default', 'host_ufo=on,guest_ufo=on'),
  virtio(
    'uso',
    ['VIRTIO_NET_F_HOST_USO', 'VIRTIO_NET_F_GUEST_USO4', 'VIRTIO_NET_F_GUEST_USO6'],
    'default',
    'host_uso=on,guest_uso4=on,guest_uso6=on',
  ),
  virtio('iommu', ['VIRTIO_F_ACCESS_PLATFORM'], 'default', 'iommu_platform=on,ats=on'),
  virtio('log-all', ['VHOST_F_LOG_ALL'], 'default'),
  virtio('mq', ['VIRTIO_NET_F_MQ'], 'default', 'mq=on, and its netdev queues=N'),
  // QEMU's and DPDK's network devices keep the control queue to themselves: it is for front-ends that pass it on.
  virtio(
    'ctrl-vq',
    [
      'VIRTIO_NET_F_CTRL_VQ',
      'VIRTIO_NET_F_CTRL_RX',
      'VIRTIO_NET_F_CTRL_RX_EXTRA',
      'VIRTIO_NET_F_CTRL_VLAN',
      'VIRTIO_NET_F_CTRL_MAC_ADDR',
      'VIRTIO_NET_F_CTRL_GUEST_OFFLOADS',
      'VIRTIO_NET_F_GUEST_ANNOUNCE',
    ],
    'asked',
  ),
  virtio('rss', ['VIRTIO_NET_F_RSS'], 'control'),
  virtio('hash-report', ['VIRTIO_NET_F_HASH_REPORT'], 'control'),
];

/** Protocol features: between the front-end and the switch, so a guest can't miss them. */
const PROTOCOL: readonly { word: string; name: VhostProtocolFeatureName; offer: Offer }[] = [
  { word: 'protocol-mq', name: 'VHOST_USER_PROTOCOL_F_MQ', offer: 'default' },
  { word: 'reply-ack', name: 'VHOST_USER_PROTOCOL_F_REPLY_ACK', offer: 'default' },
  { word: 'backend-req', name: 'VHOST_USER_PROTOCOL_F_BACKEND_REQ', offer: 'default' },
  { word: 'mtu', name: 'VHOST_USER_PROTOCOL_F_MTU', offer: 'default' },
  { word: 'reset-device', name: 'VHOST_USER_PROTOCOL_F_RESET_DEVICE', offer: 'default' },
  { word: 'status', name: 'VHOST_USER_PROTOCOL_F_STATUS', offer: 'default' },
  // QEMU warns of it, since its network devices have a configuration space of their own.
  { word: 'config', name: 'VHOST_USER_PROTOCOL_F_CONFIG', offer: 'asked' },
  { word: 'in-band', name: 'VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS', offer: 'asked' },
  // Whoever holds our userfaultfd can stop our threads and fill our memory; see docs/threat-model.md.
  { word: 'postcopy', name: 'VHOST_USER_PROTOCOL_F_PAGEFAULT', offer: 'asked' },
  { word: 'device-state', name: 'VHOST_USER_PROTOCOL_F_DEVICE_STATE', offer: 'default' },
  { word: 'mem-slots', name: 'VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS', offer: 'default' },
  { word: 'inflight', name: 'VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD', offer: 'default' },
  { word: 'rarp', name: 'VHOST_USER_PROTOCOL_F_RARP', offer: 'default' },
  { word: 'log-shmfd', name: 'VHOST_USER_PROTOCOL_F_LOG_SHMFD', offer: 'default' },
];

/** Words that a choice may have. */
export const featureWords: readonly string[] = [...new Set([...VIRTIO, ...PROTOCOL].map(({ word }) => word))];

/** Feature words that a port's choice can't have, with what they should be; empty: it is well formed. */
export function choiceFaults(choice: string): string[] {
  const faults: string[] = [];
  for (const part of choice.split(',')) {
    const [, word] = /^[+-](.*)$/s.exec(part) ?? [];
    if (word === undefined) faults.push(`${JSON.stringify(part.slice(0, 60))} has no sign: +word or -word`);
    else if (!featureWords.includes(plain(word)))
      faults.push(`no feature is called ${JSON.stringify(word.slice(0, 60))}`);
  }
  return faults;
}

/** QEMU writes `in_order`, a command line `in-order`. */
const plain = (word: string) => word.toLowerCase().replaceAll('_', '-');

/** The bits that a port offers, virtio's and the protocol's. Its choice of features must be well formed. */
export function offeredFeatures(port: OwnConfiguration = {}): { features: bigint; protocolFeatures: bigint } {
  const choice = port.features ? port.features.split(',') : [];
  const owns = [port.mac, port.mtu, port.speed].some((value) => value !== undefined);
  const signs = new Map<string, boolean>();
  for (const part of choice) signs.set(plain(part.slice(1)), part[0] === '+');
  const control = signs.get('ctrl-vq') ?? false;
  if (!signs.has('config')) signs.set('config', owns || control);
  const on = ({ word, offer }: { word: string; offer: Offer }) =>
    offer === 'control' ? control && (signs.get(word) ?? true) : (signs.get(word) ?? offer === 'default');
  let bits = features.VHOST_USER_F_PROTOCOL_FEATURES;
  for (const line of VIRTIO.filter(on)) for (const name of line.names) bits |= features[name];
  let protocolBits = 0n;
  for (const { name } of PROTOCOL.filter(on)) protocolBits |= vhostProtocolFeatures[name];
  if (protocolBits & vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_CONFIG) {
    bits |= features.VIRTIO_NET_F_STATUS;
    // A driver that reads the configuration here must keep to the MTU in it (5.1.4.2): nobody has set one.
    if (control && port.mtu === undefined && !signs.get('mtu')) bits &= ~features.VIRTIO_NET_F_MTU;
    if (port.mac !== undefined) bits |= features.VIRTIO_NET_F_MAC;
    if (port.speed !== undefined) bits |= features.VIRTIO_NET_F_SPEED_DUPLEX;
  }
  return { features: bits, protocolFeatures: protocolBits };
}

/** What the kernel's VDUSE has no place for: it takes a network device with a control queue only from later on. */
const NOT_IN_VDUSE =
  features.VHOST_USER_F_PROTOCOL_FEATURES |
  features.VHOST_F_LOG_ALL |
  features.VIRTIO_NET_F_MQ |
  VIRTIO.filter(({ word, offer }) => word === 'ctrl-vq' || offer === 'control')
    .flatMap(({ names }) => names)
    .reduce((bits, name) => bits | features[name], 0n);

/** The bits that a VDUSE device offers: it has a configuration space, of which the driver believes what it says. */
export function vduseFeatures(port: OwnConfiguration): bigint {
  let bits = offeredFeatures(port).features & ~NOT_IN_VDUSE & ~features.VIRTIO_NET_F_MTU;
  bits |= features.VIRTIO_NET_F_STATUS;
  if (port.mac !== undefined) bits |= features.VIRTIO_NET_F_MAC;
  if (port.mtu !== undefined) bits |= features.VIRTIO_NET_F_MTU;
  if (port.speed !== undefined) bits |= features.VIRTIO_NET_F_SPEED_DUPLEX;
  return bits;
}

/** What a guest usually wants and doesn't have here, and why. */
export function missingFeatures(port: {
  offered: bigint;
  acknowledged: bigint;
  connected: boolean;
  /** The device is the kernel's. */
  vduse?: boolean;
}): { name: string; reason: string }[] {
  const missing: { name: string; reason: string }[] = [];
  for (const { word, names, offer, option } of VIRTIO) {
    // An MTU is the wish of whoever starts the guest; logging is acknowledged while a guest migrates only.
    if (word === 'mtu' || word === 'log-all') continue;
    for (const name of names) {
      if (port.acknowledged & features[name] || (offer !== 'default' && !(port.offered & features[name])))
        continue;
      const hint = option ? `; QEMU's device takes ${option}` : '';
      const reason =
        port.vduse && NOT_IN_VDUSE & features[name]
          ? "the kernel's VDUSE gives a network device no control queue"
          : !(port.offered & features[name])
            ? `this port's features=-${word} switched it off`
            : port.connected
              ? `the guest or its front-end did not acknowledge it${hint}`
              : 'no guest has negotiated yet';
      missing.push({ name, reason });
    }
  }
  return missing;
}
