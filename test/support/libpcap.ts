/** libpcap itself, by the FFI: what tcpdump makes of a filter, to hold ours against. */
import koffi from 'koffi';

export interface Libpcap {
  /**
   * A filter: does a frame match? Undefined for a frame that is cut short and matches or not by the order in which it
   * is read. Throws an Error with libpcap's words where it takes no such filter.
   */
  compile(filter: string): (frame: Buffer) => boolean | undefined;
}

/** Undefined where libpcap isn't installed. */
export function libpcap(): Libpcap | undefined {
  let library: ReturnType<typeof koffi.load>;
  try {
    library = koffi.load('libpcap.so.0.8');
  } catch {
    return undefined;
  }
  // struct bpf_program: how many instructions, and where they are. struct pcap_pkthdr: a time, and two lengths.
  koffi.struct('bpf_program', { bf_len: 'uint32', bf_insns: 'void *' });
  koffi.struct('pcap_pkthdr', { seconds: 'long', microseconds: 'long', caplen: 'uint32', len: 'uint32' });
  const open = library.func('void *pcap_open_dead(int linktype, int snaplen)');
  const compile = library.func(
    'int pcap_compile(void *p, _Out_ bpf_program *program, const char *filter, int optimize, uint32 netmask)',
  );
  const offline = library.func(
    'int pcap_offline_filter(bpf_program *program, pcap_pkthdr *header, const uint8 *packet)',
  );
  const fault = library.func('const char *pcap_geterr(void *p)');
  const ETHERNET = 1;
  const NO_NETMASK = 0xffff_ffff;
  const handle = open(ETHERNET, 65_535);
  return {
    compile(filter) {
      const programs = [0, 1].map((optimize) => {
        const program = {};
        if (compile(handle, program, filter, optimize, NO_NETMASK) !== 0) throw new Error(fault(handle));
        return program;
      });
      return (frame) => {
        const header = { seconds: 0, microseconds: 0, caplen: frame.length, len: frame.length };
        const [plain, optimized] = programs.map((program) => offline(program, header, frame) !== 0);
        return plain === optimized ? plain : undefined;
      };
    },
  };
}
