/** What the data plane offers to the workers and the control plane: functions, and the layouts by name. */
import * as L from './layout';
import * as S from './scratch';
import { Entry, ENTRY_STRIDE as ENTRY_BYTES, FDB_SLOTS as SLOTS } from './fdb';

export { armAll, disarmAll, poll, sleep, start, wake } from './poll';
export { flush, learn, lookup } from './fdb';
export { flowHash } from './flow';
export { markStart } from './log';
export {
  armDriver, disarmDriver, drainFrames, floodFrames, prepareDriver, publishDriver, receiveFrame, reclaim, sendFrame,
} from './driver';

export const HEADER: usize = L.HEADER;
export const PORTS: usize = L.PORTS;
export const WORKERS: usize = L.WORKERS;
export const FDB: usize = L.FDB;
export const TABLES: usize = L.TABLES;
export const MAPPED: usize = L.MAPPED;
export const TOP: usize = L.TOP;
export const MAX_PORTS: u32 = L.MAX_PORTS;
export const MAX_WORKERS: u32 = L.MAX_WORKERS;
export const MAX_REGIONS: u32 = L.MAX_REGIONS;
export const MAX_QUEUES: u32 = S.MAX_QUEUES;
export const FLOWS: u32 = L.FLOWS;
export const FDB_SLOTS: u32 = SLOTS;
export const WORKER_STRIDE: usize = L.WORKER_STRIDE;
export const PORT_STRIDE: usize = L.PORT_STRIDE;
export const VRING_STRIDE: usize = L.VRING_STRIDE;
export const REGION_STRIDE: usize = L.REGION_STRIDE;
export const LOG_STRIDE: usize = L.LOG_STRIDE;
export const DRIVER_RING_STRIDE: usize = L.DRIVER_RING_STRIDE;
export const SHADOW_STRIDE: usize = L.SHADOW_STRIDE;
export const ENTRY_STRIDE: usize = ENTRY_BYTES;
export const QUEUES_OFFSET: usize = S.QUEUES_OFFSET;
export const CALLS_OFFSET: usize = S.CALLS_OFFSET;

export const Header_generation: usize = offsetof<L.Header>('generation');
export const Header_portCount: usize = offsetof<L.Header>('portCount');
export const Header_workerCount: usize = offsetof<L.Header>('workerCount');
export const Header_now: usize = offsetof<L.Header>('now');
export const Header_ageing: usize = offsetof<L.Header>('ageing');
export const Header_fdbEntries: usize = offsetof<L.Header>('fdbEntries');
export const Header_fdbLimit: usize = offsetof<L.Header>('fdbLimit');
export const Header_fdbLock: usize = offsetof<L.Header>('fdbLock');
export const Header_fdbSeed: usize = offsetof<L.Header>('fdbSeed');

export const Worker_seen: usize = offsetof<L.Worker>('seen');
export const Worker_stop: usize = offsetof<L.Worker>('stop');
export const Worker_queueCount: usize = offsetof<L.Worker>('queueCount');
export const Worker_callCount: usize = offsetof<L.Worker>('callCount');
export const Worker_brokenCount: usize = offsetof<L.Worker>('brokenCount');
export const Worker_round: usize = offsetof<L.Worker>('round');
export const Worker_cursor: usize = offsetof<L.Worker>('cursor');
export const Worker_burst: usize = offsetof<L.Worker>('burst');
export const Worker_idleRounds: usize = offsetof<L.Worker>('idleRounds');
export const Worker_busyRounds: usize = offsetof<L.Worker>('busyRounds');

export const Port_used: usize = offsetof<L.Port>('used');
export const Port_pairs: usize = offsetof<L.Port>('pairs');
export const Port_ring: usize = offsetof<L.Port>('ring');
export const Port_table: usize = offsetof<L.Port>('table');
export const Port_regions: usize = offsetof<L.Port>('regions');
export const Port_regionCount: usize = offsetof<L.Port>('regionCount');
export const Port_addresses: usize = offsetof<L.Port>('addresses');
export const Port_addressLimit: usize = offsetof<L.Port>('addressLimit');
export const Port_notLearned: usize = offsetof<L.Port>('notLearned');

export const Region_base: usize = offsetof<L.Region>('base');
export const Region_size: usize = offsetof<L.Region>('size');
export const Region_arena: usize = offsetof<L.Region>('arena');

export const Log_bits: usize = offsetof<L.Log>('bits');
export const Log_size: usize = offsetof<L.Log>('size');
export const Log_regions: usize = offsetof<L.Log>('regions');
export const Log_regionCount: usize = offsetof<L.Log>('regionCount');
export const Log_writes: usize = offsetof<L.Log>('writes');
export const Log_missed: usize = offsetof<L.Log>('missed');

export const Vring_state: usize = offsetof<L.Vring>('state');
export const Vring_enabled: usize = offsetof<L.Vring>('enabled');
export const Vring_size: usize = offsetof<L.Vring>('size');
export const Vring_flags: usize = offsetof<L.Vring>('flags');
export const Vring_desc: usize = offsetof<L.Vring>('desc');
export const Vring_avail: usize = offsetof<L.Vring>('avail');
export const Vring_used: usize = offsetof<L.Vring>('used');
export const Vring_port: usize = offsetof<L.Vring>('port');
export const Vring_lastAvail: usize = offsetof<L.Vring>('lastAvail');
export const Vring_usedIdx: usize = offsetof<L.Vring>('usedIdx');
export const Vring_signalled: usize = offsetof<L.Vring>('signalled');
export const Vring_signalledValid: usize = offsetof<L.Vring>('signalledValid');
export const Vring_headerLength: usize = offsetof<L.Vring>('headerLength');
export const Vring_lock: usize = offsetof<L.Vring>('lock');
export const Vring_error: usize = offsetof<L.Vring>('error');
export const Vring_offloads: usize = offsetof<L.Vring>('offloads');
export const Vring_errorValue: usize = offsetof<L.Vring>('errorValue');
export const Vring_callFd: usize = offsetof<L.Vring>('callFd');
export const Vring_callRound: usize = offsetof<L.Vring>('callRound');
export const Vring_log: usize = offsetof<L.Vring>('log');
export const Vring_logUsed: usize = offsetof<L.Vring>('logUsed');
export const Vring_logUsedAddress: usize = offsetof<L.Vring>('logUsedAddress');
export const Vring_cacheArena: usize = offsetof<L.Vring>('cacheArena');
export const Vring_cacheBase: usize = offsetof<L.Vring>('cacheBase');
export const Vring_cacheSize: usize = offsetof<L.Vring>('cacheSize');
export const Vring_packets: usize = offsetof<L.Vring>('packets');
export const Vring_bytes: usize = offsetof<L.Vring>('bytes');
export const Vring_notifications: usize = offsetof<L.Vring>('notifications');
export const Vring_drops: usize = offsetof<L.Vring>('drops');

export const Entry_key: usize = offsetof<Entry>('key');
export const Entry_seen: usize = offsetof<Entry>('seen');

export const DriverRing_size: usize = offsetof<L.DriverRing>('size');
export const DriverRing_flags: usize = offsetof<L.DriverRing>('flags');
export const DriverRing_desc: usize = offsetof<L.DriverRing>('desc');
export const DriverRing_avail: usize = offsetof<L.DriverRing>('avail');
export const DriverRing_used: usize = offsetof<L.DriverRing>('used');
export const DriverRing_bias: usize = offsetof<L.DriverRing>('bias');
export const DriverRing_headerLength: usize = offsetof<L.DriverRing>('headerLength');
export const DriverRing_buffers: usize = offsetof<L.DriverRing>('buffers');
export const DriverRing_bufferLength: usize = offsetof<L.DriverRing>('bufferLength');
export const DriverRing_segmentLength: usize = offsetof<L.DriverRing>('segmentLength');
export const DriverRing_headerAlone: usize = offsetof<L.DriverRing>('headerAlone');
export const DriverRing_shadow: usize = offsetof<L.DriverRing>('shadow');
export const DriverRing_tables: usize = offsetof<L.DriverRing>('tables');
export const DriverRing_tableEntries: usize = offsetof<L.DriverRing>('tableEntries');
export const DriverRing_freeHead: usize = offsetof<L.DriverRing>('freeHead');
export const DriverRing_freeCount: usize = offsetof<L.DriverRing>('freeCount');
export const DriverRing_oldest: usize = offsetof<L.DriverRing>('oldest');
export const DriverRing_lent: usize = offsetof<L.DriverRing>('lent');
export const DriverRing_availIdx: usize = offsetof<L.DriverRing>('availIdx');
export const DriverRing_lastUsed: usize = offsetof<L.DriverRing>('lastUsed');
export const DriverRing_published: usize = offsetof<L.DriverRing>('published');
export const DriverRing_error: usize = offsetof<L.DriverRing>('error');
export const DriverRing_errorValue: usize = offsetof<L.DriverRing>('errorValue');
export const DriverRing_packets: usize = offsetof<L.DriverRing>('packets');
export const DriverRing_bytes: usize = offsetof<L.DriverRing>('bytes');
export const DriverRing_gaps: usize = offsetof<L.DriverRing>('gaps');
export const DriverRing_expected: usize = offsetof<L.DriverRing>('expected');
