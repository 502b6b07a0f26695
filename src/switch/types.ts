/**
 * What a person configures and what a person sees: the words of the library, the management API and the CLI.
 * Everything here is plain JSON data with camelCase fields. Counters are seen from the switch:
 * `rx` came from the guest, `tx` went to the guest.
 */

/** How a worker waits: `adaptive` spins, then sleeps in the kernel; `busy` never sleeps. */
export type PollMode = 'adaptive' | 'busy';

/** Who owns the socket: `server` listens on it, `client` dials it and dials again when it is gone. */
export type Role = 'server' | 'client';

/**
 * What a port leads to. `vhost-user`: a virtual machine; `vduse`: a vDPA device of the kernel; `tap`: an interface of
 * the host's kernel that is made for it; `af-packet`: an interface of the host, such as a network card; `af-xdp`: the
 * same by AF_XDP; `stream`, `dgram`: a program that takes frames from a socket; `pcap`: a capture file; `vxlan`: a
 * tunnel to another host; `user`: what this user can reach, by passt; `patch`: the
 * patch port of that name on another bridge; `bond`: what its members, other ports, lead to; `null`: nobody. docs/ports.md has a section on each.
 */
export type PortType =
  | 'vhost-user'
  | 'vduse'
  | 'tap'
  | 'af-packet'
  | 'af-xdp'
  | 'stream'
  | 'dgram'
  | 'vxlan'
  | 'pcap'
  | 'user'
  | 'patch'
  | 'bond'
  | 'null';

/** A port as configured. */
export interface PortSpec {
  /** 1 to 63 characters of `A-Z a-z 0-9 _ . -`, the first a letter or digit; unique in the switch. */
  name: string;
  type: PortType;
  /**
   * Path of a unix socket, at most 107 bytes; name of a vDPA device or of an interface; of a bond its members, such as
   * `eth1+eth2`; of `user` and `null` empty.
   */
  target: string;
  /** Of the socket; default `server`. */
  role?: Role;
  /** Most MAC addresses learned on this port; default: the switch's `maxAddressesPerPort`. */
  maxAddresses?: number;
  /** Changes to what is offered by default, such as `-packed,-in-order`; the words are in docs/vhost-user.md. */
  features?: string;
  /** Most queue pairs that the guest may have, 1 to 128; default 128. Of a TAP its queues, of an interface its sockets; default 1. */
  queues?: number;
  /**
   * The device's MAC address, for front-ends that ask the back-end for it (crosvm; QEMU has its own `mac=`). Of a bond
   * with `lacp` that of its system; default: drawn.
   */
  mac?: string;
  /** Most bytes of payload in a frame that the guest may be told of, 68 to 65535; default: what its front-end says. */
  mtu?: number;
  /** Mbit/s that the guest is told of; default: unknown. */
  speed?: number;
  /** Refuses memory files that their owner could make shorter (docs/threat-model.md); default false. */
  sealed?: boolean;
  /** Of `vxlan`: the number of the network, 0 to 16777215; default 0. */
  vni?: number;
  /** Of `vxlan`: the address and port of ours, such as `192.0.2.1` or `192.0.2.1:4789`; default: all, port 4789. */
  local?: string;
  /** Of `dgram`: the socket of the other side, a path or an address with its port; default: of who sends first. */
  remote?: string;
  /**
   * Of `pcap`: whether the file is played or written anew; default `read`. Of `bond`: one member carries everything
   * (default), or all do by flow, to a neighbour that bundles its ports too: those that are up, or those that LACP
   * has agreed on.
   */
  mode?: 'read' | 'write' | 'active-backup' | 'balance' | 'lacp';
  /** Of `bond` with `active-backup`: the member that is active whenever its link is up; default: whichever is. */
  primary?: string;
  /** Of `bond` otherwise: what chooses a frame's member, addresses of stations or the flow; default `l3+4`. */
  hash?: 'l2' | 'l3+4';
  /** Of `bond` with `lacp`: how often the neighbour is asked to speak: in 30 seconds (default) or each second. */
  lacpRate?: 'slow' | 'fast';
  /** Of `pcap`, to read: `recorded` (default), `fast`, or packets a second such as `1000pps`. */
  timing?: string;
  /** Of `pcap`, to read: how often the file is played, 0: for ever; default 1. */
  loop?: number;
  /** Of `user`: more options of passt, separated by blanks. */
  options?: string;
  /** The bridge that it is on, which can be set anew too; default `default`. */
  bridge?: string;
  // Rules, of every kind of port, which can be set anew while the port is there: docs/rules.md.
  /** `down`: no frames come and go, and the guest's link is down; default `up`. */
  link?: 'up' | 'down';
  /** The name of a port, such as an uplink, with whose link that of this port goes down and up; default: none. */
  linkFollows?: string;
  /** No frames to and from other ports that are isolated; default false. */
  isolated?: boolean;
  /** False: what comes teaches the bridge no addresses; default true. */
  learning?: boolean;
  /** Only addresses that were entered for the port may send there; default false. */
  locked?: boolean;
  /** The one VLAN that the port is in, without tags: 1 to 4094. */
  vlan?: number;
  /** The VLANs that the port is in with tags, such as `10+20-30`, or `all`; 0: frames without a tag. Default `all`. */
  trunk?: string;
  /** The VLAN of a trunk's frames without a tag, 1 to 4094. */
  native?: number;
  /** The VLAN in which all frames of the port, whatever tags they have, go as they are: 1 to 4094. */
  qinq?: number;
  /** The tags of a trunk: `802.1q` (0x8100, default) or `802.1ad` (0x88a8). */
  tags?: '802.1q' | '802.1ad';
  /** Most that the guest may send, in bits and packets a second: `100Mbit`, `10kpps`, or both as `100Mbit+10kpps`. */
  rateIn?: string;
  /** Bytes that it may send at once, such as `64KiB`; default: what the rate brings in 50 ms, at least 64 KiB. */
  burstIn?: string | number;
  /** Rate of what goes to the guest, such as `100Mbit`: what is beyond waits, by priority. */
  rateOut?: string;
  /** Bytes that go at once, such as `64KiB`; default: what the rate brings in 10 ms, at least 16 KiB. */
  burstOut?: string | number;
  /** Bytes that may wait in each of the 8 queues, 128KiB to 4MiB; default 256 KiB. */
  queueOut?: string | number;
  /** How long frames are under way from the guest and to it, such as `10ms`; default 0. */
  delayIn?: string;
  delayOut?: string;
  /** Up to how much shorter or longer, such as `1ms`. */
  jitterIn?: string;
  jitterOut?: string;
  /** The share of frames, such as `1%`, that is lost, comes twice, doesn't wait for the delay, has a bit flipped. */
  lossIn?: string;
  lossOut?: string;
  duplicateIn?: string;
  duplicateOut?: string;
  reorderIn?: string;
  reorderOut?: string;
  corruptIn?: string;
  corruptOut?: string;
  /** Most frames under way, 1 to 8192; default 1000. */
  limitIn?: number;
  limitOut?: number;
  /** Makes a run of losses and the like that can be repeated: 0 to 4294967295; default: drawn. */
  seed?: number;
  /** The MACs that it sends from, such as `52:54:00:12:34:56+52:54:00:12:34:57`; default: any. */
  allowMac?: string;
  /** The addresses and prefixes that it sends from, such as `10.0.0.5+2001:db8::/64`; default: any. */
  allowIp?: string;
  /** No Router Advertisements and Redirects (IPv6) from it; default false. */
  raGuard?: boolean;
  /** No messages of DHCP and DHCPv6 servers from it; default false. */
  dhcpGuard?: boolean;
  /** Most that it sends to everybody: packets (`1000pps`) or bits (`10Mbit`) a second; default: any. */
  stormBroadcast?: string;
  /** Most that it sends to groups. */
  stormMulticast?: string;
  /** Most that it sends to addresses that aren't known. */
  stormUnknown?: string;
  /** Where the bridge has `snooping`: does the port lead to a multicast router? Default `auto`: if one shows itself. */
  multicastRouter?: 'auto' | 'always' | 'never';
  /** A group that is left is left at once, without asking who else is in it; default false. */
  fastLeave?: boolean;
  /** Most groups that the port joins, 0 to 2048; default 256. */
  maxGroups?: number;
  // On a bridge with RSTP: docs/rstp.md.
  /** False: the port is in no tree, and hears no BPDUs; default true. */
  rstp?: boolean;
  /** Cost of a way to the root by this port, 1 to 200000000; default: by `speed`, 2000 where it has none. */
  pathCost?: number;
  /** Of equal ways the one by the port with the lowest number here, a multiple of 16 up to 240; default 128. */
  portPriority?: number;
  /** No bridge is behind it, so it forwards at once; `auto` (default): so it is while none is heard. */
  edge?: 'auto' | boolean;
  /** At most one bridge is behind it; default true. */
  pointToPoint?: boolean;
  /** Shuts the port when a BPDU comes; default false. */
  bpduGuard?: boolean;
}

/** Fields of a port to be set anew; null: back to the default. */
export type PortChange = { [K in keyof Omit<PortSpec, 'name' | 'type' | 'target'>]?: PortSpec[K] | null };

/** An address that is entered for good, as configured: it neither ages nor moves. */
export interface AddressSpec {
  /** Of one station, such as `52:54:00:12:34:56`. */
  mac: string;
  /** Name of the port that it is behind. */
  port: string;
  /** On a bridge with VLANs; default: that of the port's frames without a tag. */
  vlan?: number;
}

/** A port that is entered into a group for good, as configured. */
export interface GroupSpec {
  /** Address of IPv4 or IPv6, such as `239.1.1.1` or `ff3e::1`. */
  group: string;
  /** Name of the port. */
  port: string;
  /** On a bridge with VLANs; default: that of the port's frames without a tag. */
  vlan?: number;
}

/** A port in a group, or that leads to a router. */
export interface GroupMember {
  port: string;
  /** It was entered, not learned. */
  static: boolean;
  /** Seconds until it is forgotten; null: it isn't. */
  expires: number | null;
}

/** The ports that have joined a group. */
export interface GroupEntry {
  bridge: string;
  /** 0: frames without a tag, or a bridge without VLANs. */
  vlan: number;
  group: string;
  ports: GroupMember[];
}

/** The ports behind which routers are, or switches that ask in place of one. */
export interface RouterEntry {
  bridge: string;
  vlan: number;
  family: 'IPv4' | 'IPv6';
  /** Who asks hosts for their groups. */
  querier: { address: string; port: string } | null;
  ports: GroupMember[];
}

export interface GroupsStatus {
  groups: GroupEntry[];
  routers: RouterEntry[];
}

/** Which addresses: those of one port, bridge, VLAN. */
export interface AddressFilter {
  port?: string;
  bridge?: string;
  vlan?: number;
}

/** A bridge as configured: ports of one reach each other, and none of another. */
export interface BridgeSpec {
  /** As a port's; `default` is always there. */
  name: string;
  /** Seconds after which an address that was not seen is forgotten; default: the switch's `ageing`. */
  ageing?: number;
  /**
   * Frames to 01-80-C2-00-00-00 to -0F (STP, LACP, LLDP, 802.1X): `filter` as IEEE 802.1Q has it of a bridge, `pass`
   * as of a cable; default `auto`: a bridge with two ports is a cable.
   */
  reserved?: 'auto' | 'pass' | 'filter';
  /** Frames for groups go to who has joined them (IGMP and MLD snooping); default false. */
  snooping?: boolean;
  /** RSTP against loops (IEEE 802.1D-2004), which speaks STP with who speaks that; default false. */
  rstp?: boolean;
  /** The bridge with the lowest number is the root: a multiple of 4096 up to 61440; default 32768. */
  priority?: number;
  /** Its address in RSTP, such as `52:54:00:12:34:56`; default: drawn at start. */
  mac?: string;
  /** Seconds after which what was heard of the root is forgotten, 6 to 40; default 20. */
  maxAge?: number;
  /** Seconds that a port listens, and again learns, beside a neighbour with STP: 4 to 30; default 15. */
  forwardDelay?: number;
  /** With `snooping`: the switch asks who is in which group, where no router does; default false. */
  querier?: boolean;
}

/** Fields of a bridge to be set anew; null: back to the default. */
export type BridgeChange = { [K in keyof Omit<BridgeSpec, 'name'>]?: BridgeSpec[K] | null };

export interface BridgeStatus {
  name: string;
  /** Seconds. */
  ageing: number;
  /** Has one of its ports settings of VLANs? */
  vlans: boolean;
  /** What becomes of frames to addresses that are reserved for bridges. */
  reserved: 'pass' | 'filter';
  snooping: boolean;
  /** Does the switch ask who is in which group? */
  querier: boolean;
  /** Names of its ports. */
  ports: string[];
  /** Known addresses. */
  addresses: number;
  /** With RSTP alone. */
  spanningTree?: RstpBridgeStatus;
}

export type RstpRole = 'disabled' | 'root' | 'designated' | 'alternate' | 'backup';
export type RstpState = 'discarding' | 'learning' | 'forwarding';

/** A bridge's part in a spanning tree. Bridges are named by priority and address, as `8000.525400123456`. */
export interface RstpBridgeStatus {
  id: string;
  root: string;
  /** Name of the port that leads to the root; null: it is this bridge. */
  rootPort: string | null;
  /** Of the way there. */
  rootCost: number;
  /** The root's times, in seconds. */
  helloTime: number;
  maxAge: number;
  forwardDelay: number;
  topologyChanges: number;
  /** Seconds; null: it has not changed yet. */
  sinceTopologyChange: number | null;
  ports: { name: string; role: RstpRole; state: RstpState; pathCost: number }[];
}

/** A port's part in it. */
export interface RstpPortStatus {
  role: RstpRole;
  state: RstpState;
  /** Priority and number, hexadecimal. */
  id: string;
  pathCost: number;
  /** What is known on the link: the root and its cost, by which bridge and port of it. */
  root: string;
  rootCost: number;
  designatedBridge: string;
  designatedPort: string;
  /** No bridge is behind it, as far as is known. */
  edge: boolean;
  pointToPoint: boolean;
  /** The protocol that the neighbour is told in. */
  speaks: 'rstp' | 'stp';
  /** A BPDU came though `bpduGuard` is set: it is off until its link goes down and up, or the guard is taken away. */
  shut: boolean;
  /** BPDUs. */
  received: number;
  sent: number;
}

/** A mirror as configured: it copies frames of some ports (SPAN). */
export interface MirrorSpec {
  /** As a port's. */
  name: string;
  /** Names of ports, joined by `+`; default `any`: all but those that mirrors copy to. */
  from?: string;
  /** Only frames in these VLANs, such as `10+20-30`; 0: without a VLAN; default: all. */
  vlans?: string;
  /** Frames from the ports (`in`), to them (`out`), or `both` (default). */
  direction?: 'in' | 'out' | 'both';
  /**
   * A port, which gets nothing else then; `vlan:N`, the ports that name VLAN N, each copy with that tag (RSPAN); or
   * `file:PATH`, as pcapng.
   */
  to: string;
}

/** Fields of a mirror that are set anew; null: the default. */
export type MirrorChange = { [F in Exclude<keyof MirrorSpec, 'name'>]?: MirrorSpec[F] | null };

export interface MirrorStatus extends MirrorSpec {
  from: string;
  direction: 'in' | 'out' | 'both';
  /** Names of the ports that copies go to now; of a file none. */
  ports: string[];
  /** Frames that were copied, and such as found no room where they were to go. */
  copied: number;
  lost: number;
  /** Why the file gets no more; null where it does, and where it is none. */
  error: string | null;
}

export interface SwitchOptions {
  /** Default `vireo`; names the control socket. Same alphabet as a port's name. */
  name?: string;
  /** Worker threads, 1 to 32; default 1. */
  workers?: number;
  /** CPUs to pin the workers to, one each; default: not pinned. */
  cpus?: number[];
  /** Default `adaptive`. */
  poll?: PollMode;
  /** Seconds after which an address that was not seen is forgotten; default 300 (IEEE 802.1D). */
  ageing?: number;
  /** Most MAC addresses learned on one port; default 4096. */
  maxAddressesPerPort?: number;
  /** Most ports at a time, 1 to 2048; default 2048. */
  maxPorts?: number;
  /** Bridges beside the default one, or settings of that. */
  bridges?: BridgeSpec[];
  /** Ports to start with. */
  ports?: PortSpec[];
  /** Addresses that are entered for good. */
  fdb?: AddressSpec[];
  /** Ports that are entered into groups for good. */
  groups?: GroupSpec[];
  /** Mirrors to start with. */
  mirrors?: MirrorSpec[];
}

/** What is captured. */
export interface CaptureOptions {
  /** Name of a port, or `any`: all ports, those added later too. */
  port: string;
  /** Which frames, in the language of pcap-filter(7): docs/capture.md; default: all. */
  filter?: string;
  /** Bytes of a frame that are kept, 1 to 262144; default: all. */
  snaplen?: number;
  /** Ends behind so many frames. */
  count?: number;
  /** Ends after so many seconds. */
  seconds?: number;
}

/** A capture that runs. */
export interface CaptureStream {
  /** Tells it from others of its switch. */
  readonly id: number;
  /** Frames that found no room in it so far. */
  readonly lost: bigint;
  /** The frames as a file in pcapng, in pieces, as they come; to be read once. Leaving it early ends the capture. */
  stream(): AsyncIterable<Buffer>;
  /** Lets the stream end with what has come by now. */
  stop(): void;
  /** Ends it at once; resolves when nothing is left of it. */
  close(): Promise<void>;
}

export interface Counters {
  rxPackets: number;
  rxBytes: number;
  rxDrops: number;
  txPackets: number;
  txBytes: number;
  txDrops: number;
}

/**
 * `listening`, `dialing`: no front-end yet, and no driver of a vDPA device. `connected`: a front-end negotiates. `up`: both rings run and are
 * enabled. `down`: the interface is there, and nobody has set it up. `broken`: a queue was stopped for what the guest
 * did. `failed`: the socket can't be used, the interface is gone.
 */
export type PortState = 'listening' | 'dialing' | 'connected' | 'up' | 'down' | 'broken' | 'failed';

export interface PortStatus extends Counters {
  name: string;
  type: string;
  target: string;
  /** Null where the kind of port has none. */
  role: Role | null;
  state: PortState;
  /** What the rings negotiated, for the table: e.g. `split 256 mrg in-order`; empty before that. */
  rings: string;
  /** The last thing that went wrong, in one sentence; null if nothing did. */
  lastError: string | null;
}

/** Frames by length in bytes: DPDK's bins for extended statistics (`size_65_127_packets` and so on). */
export interface SizeCounts {
  /** Shorter than 64. */
  undersize: number;
  size64: number;
  size65To127: number;
  size128To255: number;
  size256To511: number;
  size512To1023: number;
  size1024To1518: number;
  size1519ToMax: number;
}

export interface QueueStatus {
  index: number;
  /** From the switch: `rx` takes packets from the guest, `tx` gives packets to the guest, `control` takes commands. */
  direction: 'rx' | 'tx' | 'control';
  kind: 'split' | 'packed';
  /** Descriptors; 0 before it is configured. */
  size: number;
  state: 'stopped' | 'running' | 'broken';
  enabled: boolean;
  /** The worker that polls it; null when none does. */
  worker: number | null;
  /** Why it is broken; null when it is not. */
  error: string | null;
  packets: number;
  bytes: number;
  /** The packets by size. */
  sizes: SizeCounts;
  /** The packets by whom they are for: one, a group, everybody. */
  casts: { unicast: number; multicast: number; broadcast: number };
  /** Interrupts sent to the guest. */
  notifications: number;
  /** By reason, only reasons that occurred. */
  drops: Record<string, number>;
}

export interface MemoryRegionStatus {
  /** Guest physical address, hexadecimal with 0x. */
  guestAddress: string;
  /** Bytes. */
  size: number;
  /** Bytes in a page of the backing file. */
  pageSize: number;
  /** False: the front-end could truncate the file under us, and would be disconnected. */
  sealed: boolean;
  /** Mapped as a whole; or, of a guest too large for that, through windows of 2 MiB; or by copies of its bytes. */
  reached: 'mapped' | 'windows' | 'copies';
}

/** A member of a bond. */
export interface BondMemberStatus {
  /** Name of the port. */
  port: string;
  link: 'up' | 'down';
  /** Frames leave by it; frames from it count. */
  sends: boolean;
  receives: boolean;
  /** With `lacp`: the states of its machines, set bits of its state and its partner's, and LACPDUs. */
  lacp?: {
    receive: string;
    mux: string;
    state: string;
    partner: { system: string; key: number; port: number; state: string };
    received: number;
    sent: number;
    /** Frames of slow protocols that were none, or came back. */
    bad: number;
  };
}

export interface PortDetail extends PortStatus {
  /** Of a bond. */
  members?: BondMemberStatus[];
  /** The bond that it is a member of. */
  bond?: string;
  /** Of a port that is no guest: what there is to know of its other end, such as the state of an interface. */
  note?: string;
  /** What the guest was told to keep to; null where nobody told it anything. */
  mtu: number | null;
  /** The device status that the guest's driver has set, such as `ACKNOWLEDGE DRIVER`; empty where nobody tells. */
  driverStatus: string;
  features: {
    offered: string[];
    acknowledged: string[];
    /** Features that a guest usually wants and doesn't have here, and why. */
    missing: { name: string; reason: string }[];
  };
  protocolFeatures: { offered: string[]; acknowledged: string[] };
  queues: QueueStatus[];
  memory: MemoryRegionStatus[];
  /** Drops of all queues by reason, only reasons that occurred. */
  drops: Record<string, number>;
  /** Frames that the guest's own filters kept from it: it doesn't want them, so they are no drops. */
  filtered: number;
  addresses: { learned: number; limit: number };
  /** Groups that were joined, at most so many, and how often that was too many; null where its bridge has no `snooping`. */
  groups?: { joined: number; limit: number; refused: number } | null;
  /** Times a front-end connected. */
  connections: number;
  /** The rules that are set, as in the port's specification. */
  rules: Partial<PortSpec>;
  /** In a spanning tree alone. */
  spanningTree?: RstpPortStatus;
  /** Names of the mirrors that copy its frames, and of those whose copies it gets. */
  mirrors: { from: string[]; to: string[] };
}

/** What apply() did. */
export interface Applied {
  /** Names of ports. */
  added: string[];
  removed: string[];
  changed: string[];
  unchanged: string[];
  /** Names of bridges. */
  bridges: { added: string[]; removed: string[]; changed: string[] };
  /** Addresses that were entered, and such as were taken away. */
  fdb: { added: string[]; removed: string[] };
  /** Groups that ports were entered into, and taken from. */
  groups: { added: string[]; removed: string[] };
  /** Names of mirrors. */
  mirrors: {
    added: string[];
    removed: string[];
    changed: string[];
    failed: { mirror: string; error: string }[];
  };
  /** Settings of the switch that have another value now, e.g. `ageing`. */
  settings: string[];
  /** Ports that could not be brought to what was asked for, and why; those that were there before are as they were. */
  failed: { port: string; error: string }[];
}

export interface FdbEntry {
  /** `52:54:00:12:34:56` */
  mac: string;
  bridge: string;
  /** 0: frames without a tag, or a bridge without VLANs. */
  vlan: number;
  port: string;
  /** It was entered, not learned. */
  static: boolean;
  /** Seconds since a frame came from it; of one that was entered since then at most. */
  age: number;
}

export interface WorkerStatus {
  id: number;
  /** The CPU it is pinned to; null when not pinned. */
  cpu: number | null;
  /** Share of one core since the last look, 0 to 100. */
  cpuPercent: number;
  /** Queues it polls. */
  queues: number;
}

export interface SwitchStatus {
  name: string;
  version: string;
  pid: number;
  /** Seconds. */
  uptime: number;
  node: string;
  poll: PollMode;
  ports: number;
  workers: WorkerStatus[];
  fdb: { entries: number; limit: number; ageing: number; maxAddressesPerPort: number };
  /** Bytes of resident memory of the process, guest memory that it touched included. */
  residentBytes: number;
}

/** Events of a switch, with what each carries. */
export interface SwitchEvents {
  /** Both rings of the port run. */
  guestUp: [event: { port: string }];
  /** The front-end left or stopped its rings. */
  guestDown: [event: { port: string; reason: string }];
  /** The guest broke a rule of the ring: this queue is stopped, others go on. */
  queueBroken: [event: { port: string; queue: number; reason: string }];
  /** A connection was ended for what the front-end sent, or a socket failed. */
  portError: [event: { port: string; error: string }];
  /** A worker has ended by a fault of this program: close the switch. Without a listener the process ends. */
  error: [error: Error];
}
