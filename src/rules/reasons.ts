/** Why rules turn frames away: names for `port show`, in the order of RULE_… in the data plane. */

export interface Reason {
  name: string;
  /** Of frames that came from the port's guest, or of frames to it. */
  way: 'rx' | 'tx';
}

export const REASONS: readonly Reason[] = [
  { name: 'isolated', way: 'rx' },
  { name: 'vlanNotAdmitted', way: 'rx' },
  { name: 'vlanNotMember', way: 'tx' },
  { name: 'vlanInnerTag', way: 'tx' },
  { name: 'vlanTooLong', way: 'tx' },
  { name: 'rateIn', way: 'rx' },
  { name: 'queueOut', way: 'tx' },
  { name: 'lossIn', way: 'rx' },
  { name: 'lossOut', way: 'tx' },
  { name: 'limitIn', way: 'rx' },
  { name: 'limitOut', way: 'tx' },
  { name: 'spoofedMac', way: 'rx' },
  { name: 'spoofedIp', way: 'rx' },
  { name: 'spoofedArp', way: 'rx' },
  { name: 'spoofedNd', way: 'rx' },
  { name: 'routerAdvertisement', way: 'rx' },
  { name: 'dhcpServer', way: 'rx' },
  { name: 'hiddenHeaders', way: 'rx' },
  { name: 'stormBroadcast', way: 'rx' },
  { name: 'stormMulticast', way: 'rx' },
  { name: 'stormUnknown', way: 'rx' },
  { name: 'locked', way: 'rx' },
  { name: 'protocolOverflow', way: 'rx' },
  { name: 'discardingIn', way: 'rx' },
  { name: 'discardingOut', way: 'tx' },
  { name: 'badBpdu', way: 'rx' },
  { name: 'bondClosed', way: 'rx' },
  { name: 'fromMonitor', way: 'rx' },
  { name: 'toMonitor', way: 'tx' },
  { name: 'badLacpdu', way: 'rx' },
  { name: 'linkDownIn', way: 'rx' },
  { name: 'linkDownOut', way: 'tx' },
];
