/** The library: what `vireo up` does, for programs. See docs/library.md. */
export { SwitchError, type SwitchErrorCode } from './switch/errors.ts';
export { parsePortSpec } from './switch/spec.ts';
export { createSwitch, Switch } from './switch/switch.ts';
export * from './switch/types.ts';
