/** The options that choose among entries of tables by where they belong: port, bridge and VLAN. */
import type { Command } from 'commander';
import type { AddressFilter } from '../switch/types.ts';
import { type ClientOptions, wholeNumber } from './command.ts';

export type PlaceOptions = ClientOptions & AddressFilter;

export const placeOf = ({ port, bridge, vlan }: PlaceOptions): AddressFilter => ({
  ...(port !== undefined && { port }),
  ...(bridge !== undefined && { bridge }),
  ...(vlan !== undefined && { vlan }),
});

export const withPlace = (command: Command): Command =>
  command
    .option('--port <name>', 'only those of this port')
    .option('--bridge <name>', 'only those of this bridge')
    .option('--vlan <n>', 'only those in this VLAN', wholeNumber(0, 4094));

/** The option of an entry that is made. */
export const withVlan = (command: Command, whose: string): Command =>
  command.option(
    '--vlan <n>',
    `${whose} VLAN (default: that of the port's frames without a tag)`,
    wholeNumber(0, 4094),
  );

/** As tables have it: 0 is the VLAN of a bridge without any. */
export const vlanText = (vlan: number): string => (vlan === 0 ? '-' : String(vlan));
