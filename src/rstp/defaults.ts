/** Settings of RSTP where an operator says nothing: IEEE 802.1D-2004, tables 17-1 and 17-2. Times in seconds. */
export const DEFAULTS = { priority: 32_768, portPriority: 128, maxAge: 20, forwardDelay: 15 };
