/** The library: what `vireo up` does, and network devices on a back-end, for programs. See docs/library.md. */
export { SwitchError, type SwitchErrorCode } from './switch/errors.ts';
export { parsePortSpec } from './switch/spec.ts';
export { createSwitch, Switch } from './switch/switch.ts';
export * from './switch/types.ts';
export type { HashConfig, RssConfig } from './virtio/control-queue.ts';
export { type FeatureName, features } from './virtio/features.ts';
export type { Offload } from './virtio/net-header.ts';
export type { ControlQueue } from './virtio-user/control-queue.ts';
export { VirtioUser, type VirtioUserEvents } from './virtio-user/device.ts';
export { VirtioUserError, type VirtioUserErrorCode } from './virtio-user/errors.ts';
export { DRIVER_FEATURES, type VirtioUserOptions } from './virtio-user/options.ts';
export type { VirtioUserCounters } from './virtio-user/statistics.ts';
export type { DeviceConfig } from './virtio-user/transport.ts';
