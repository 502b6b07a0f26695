/** Why frames are dropped at a ring, in the order of the counters in the arena (Vring.drops). */
export const DROP_REASONS = [
  'ringFull',
  'tooBigForBuffers',
  'tooShort',
  'oversize',
  'samePort',
  'noGuest',
  'queueBroken',
  'queueDisabled',
  'badOffload',
  'reservedAddress',
  'badGroupMessage',
] as const;
