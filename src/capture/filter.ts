/**
 * The language of capture filters, that of pcap-filter(7): from text to conditions on a frame's bytes. What isn't in
 * it of that page is listed in docs/capture.md. filter-code.ts makes instructions of the conditions.
 *
 * As there, `and` and `or` bind equally, from left to right; a value without words before it takes those of the one
 * before (`port 80 or 443`); and behind `vlan` everything lies four bytes further on, to the filter's end.
 */
import { isIPv4, isIPv6 } from 'node:net';

/** What a frame must be. */
export type Condition =
  | { kind: 'and' | 'or'; left: Condition; right: Condition }
  | { kind: 'not'; of: Condition }
  | Test;

/** One comparison. */
export interface Test {
  kind: 'test';
  /** Bytes to load, or the frame's length. */
  width: 1 | 2 | 4 | 'length';
  /** From where. */
  at: number;
  /** Where an IPv4 header stands whose length is added to `at`. */
  header?: number;
  mask?: number;
  /** `&`: some of the bits are set. */
  is: '=' | '>' | '>=' | '&';
  value: number;
}

/** What is wrong with a filter, and where: columns count from 1. */
export class FilterError extends Error {
  override readonly name = 'FilterError';
  readonly column: number;

  constructor(column: number, message: string) {
    super(`${message}, at column ${column}`);
    this.column = column;
  }
}

interface Token {
  text: string;
  /** From 0. */
  at: number;
}

const MAX_LENGTH = 1000;

const TYPES: Record<string, number> = { ip: 0x0800, arp: 0x0806, rarp: 0x8035, ip6: 0x86dd };
const PROTOCOLS: Record<string, number> = { icmp: 1, igmp: 2, tcp: 6, udp: 17, icmp6: 58, sctp: 132 };
const PROTOS = ['ether', ...Object.keys(TYPES), ...Object.keys(PROTOCOLS)];
const KINDS = ['host', 'net', 'port', 'portrange', 'proto'] as const;
type Kind = (typeof KINDS)[number];
const WORDS = [
  ...PROTOS,
  ...KINDS,
  ...['src', 'dst', 'vlan', 'broadcast', 'multicast', 'less', 'greater', 'and', 'or', 'not', 'mask'],
];
/** Names of ports that people write, and the one protocol that they are of, as in services(5). */
const PORTS: Record<string, { port: number; only?: 'tcp' | 'udp' }> = {
  ftp: { port: 21, only: 'tcp' },
  ssh: { port: 22, only: 'tcp' },
  smtp: { port: 25, only: 'tcp' },
  domain: { port: 53 },
  bootps: { port: 67, only: 'udp' },
  bootpc: { port: 68, only: 'udp' },
  tftp: { port: 69, only: 'udp' },
  http: { port: 80, only: 'tcp' },
  ntp: { port: 123, only: 'udp' },
  snmp: { port: 161 },
  bgp: { port: 179, only: 'tcp' },
  https: { port: 443 },
  syslog: { port: 514, only: 'udp' },
};
/** Names of places and of values in headers. */
const PLACES: Record<string, number> = { tcpflags: 13, icmptype: 0, icmpcode: 1, icmp6type: 0, icmp6code: 1 };
const VALUES: Record<string, number> = {
  'tcp-fin': 1, 'tcp-syn': 2, 'tcp-rst': 4, 'tcp-push': 8, 'tcp-ack': 16, 'tcp-urg': 32, 'tcp-ece': 64,
  'tcp-cwr': 128, 'icmp-echoreply': 0, 'icmp-unreach': 3, 'icmp-echo': 8,
}; // biome-ignore format: a table

type Side = 'src' | 'dst' | 'either' | 'both';

/** The words before a value. */
interface Head {
  proto?: string;
  side: Side;
  kind: Kind;
}

/** Reads a filter. Throws FilterError. */
export function readFilter(text: string): Condition {
  if (text.length > MAX_LENGTH)
    throw new FilterError(MAX_LENGTH, `expected at most ${MAX_LENGTH} characters, found ${text.length}`);
  return new Parser(text).whole();
}

const both = (left: Condition, right: Condition): Condition => ({ kind: 'and', left, right });
const either = (left: Condition, right: Condition): Condition => ({ kind: 'or', left, right });
const not = (of: Condition): Condition => ({ kind: 'not', of });

class Parser {
  readonly #tokens: Token[] = [];
  readonly #end: number;
  #next = 0;
  /** Where the EtherType stands, and the header behind it. */
  #type = 12;
  #network = 14;
  #head: Head | undefined;

  constructor(text: string) {
    this.#end = text.length;
    const pattern = /\s+|(&&|\|\||<=|>=|==|!=|[()![\]<>=&|])|([\w.:/\\-]+)/gy;
    while (pattern.lastIndex < text.length) {
      const at = pattern.lastIndex;
      const match = pattern.exec(text);
      if (match === null) throw new FilterError(at + 1, `expected a word, found ${JSON.stringify(text[at])}`);
      const token = match[1] ?? match[2];
      if (token !== undefined) this.#tokens.push({ text: token, at });
    }
  }

  whole(): Condition {
    const condition = this.#expression();
    if (this.#next < this.#tokens.length) this.#fail('"and" or "or"');
    return condition;
  }

  #peek(ahead = 0): string | undefined {
    return this.#tokens[this.#next + ahead]?.text;
  }

  #take(...words: string[]): string | undefined {
    const token = this.#peek();
    if (token === undefined || !words.includes(token)) return undefined;
    this.#next++;
    return token;
  }

  #fail(what: string, back = 0): never {
    const token = this.#tokens[this.#next - back];
    const found = token === undefined ? 'the end' : JSON.stringify(token.text.slice(0, 40));
    throw new FilterError((token?.at ?? this.#end) + 1, `expected ${what}, found ${found}`);
  }

  #need(word: string): void {
    if (this.#take(word) === undefined) this.#fail(`"${word}"`);
  }

  #expression(): Condition {
    let left = this.#term(false);
    for (;;) {
      if (this.#take('and', '&&')) left = both(left, this.#term(true));
      else if (this.#take('or', '||')) left = either(left, this.#term(true));
      else return left;
    }
  }

  /** `again`: a value alone takes the words of the one before. */
  #term(again: boolean): Condition {
    if (this.#take('not', '!')) return not(this.#term(again));
    if (this.#take('(')) {
      const inner = this.#expression();
      this.#need(')');
      return inner;
    }
    const word = this.#peek();
    if (again && this.#head !== undefined && word !== undefined && /^\w/.test(word) && !WORDS.includes(word))
      return this.#value(this.#head);
    return this.#primitive();
  }

  #primitive(): Condition {
    if (this.#take('less')) return this.#length((n) => not(this.#sized('>', n)));
    if (this.#take('greater')) return this.#length((n) => this.#sized('>=', n));
    if (this.#take('vlan')) return this.#vlan();
    const proto = this.#take(...PROTOS);
    if (proto !== undefined && this.#peek() === '[') return this.#bytes(proto);
    const cast = this.#take('broadcast', 'multicast');
    if (cast !== undefined) return this.#cast(proto ?? 'ether', cast);
    const side = this.#side();
    const kind = this.#take(...KINDS) as Kind | undefined;
    if (kind === undefined && side === undefined) {
      if (proto === undefined) this.#fail(`a filter's word, such as ${WORDS.slice(0, 14).join(', ')}`);
      if (proto === 'ether') this.#fail('"host", "src", "dst", "proto", "broadcast" or "multicast"');
      return this.#protocol(proto);
    }
    this.#head = { ...(proto === undefined ? {} : { proto }), side: side ?? 'either', kind: kind ?? 'host' };
    return this.#values(this.#head);
  }

  #side(): Side | undefined {
    const first = this.#take('src', 'dst') as 'src' | 'dst' | undefined;
    const second = this.#peek(1);
    if (first === undefined || (second !== 'src' && second !== 'dst') || second === first) return first;
    const how = this.#take('or', '||') ? 'either' : this.#take('and', '&&') ? 'both' : undefined;
    if (how !== undefined) this.#next++;
    return how ?? first;
  }

  /** A value behind its words, or several in parentheses. */
  #values(head: Head): Condition {
    if (this.#take('not', '!')) return not(this.#values(head));
    if (!this.#take('(')) return this.#value(head);
    let left = this.#values(head);
    for (;;) {
      if (this.#take('and', '&&')) left = both(left, this.#values(head));
      else if (this.#take('or', '||')) left = either(left, this.#values(head));
      else break;
    }
    this.#need(')');
    return left;
  }

  #value(head: Head): Condition {
    switch (head.kind) {
      case 'host':
        return this.#host(head);
      case 'net':
        return this.#net(head);
      case 'port':
        return this.#namedPort(head);
      case 'portrange': {
        const [, from, to] = /^(\d+)-(\d+)$/.exec(this.#peek() ?? '') ?? [];
        if (from === undefined || Number(from) > Number(to) || Number(to) > 65_535)
          this.#fail('two ports such as 6000-6008');
        this.#next++;
        return this.#port(head, Number(from), Number(to));
      }
      case 'proto':
        return this.#proto(head);
    }
  }

  #word(what: string): string {
    const word = this.#peek();
    if (word === undefined || !/^[\w.:/\\-]+$/.test(word)) this.#fail(what);
    this.#next++;
    return word!;
  }

  #number(most: number, what: string): number {
    const word = this.#peek() ?? '';
    const value = /^(0x[0-9a-f]+|\d+)$/i.test(word) ? Number(word) : Number.NaN;
    if (!(value <= most)) this.#fail(`${what} up to ${most}`);
    this.#next++;
    return value;
  }

  #length(make: (bytes: number) => Condition): Condition {
    return make(this.#number(0xffff_ffff, 'a number of bytes'));
  }

  #test(width: 1 | 2 | 4, at: number, value: number, more: Partial<Test> = {}): Test {
    return { kind: 'test', width, at, is: '=', value, ...more };
  }

  #sized(is: '>' | '>=', value: number): Test {
    return { kind: 'test', width: 'length', at: 0, is, value };
  }

  #ofType(type: string): Test {
    return this.#test(2, this.#type, TYPES[type]!);
  }

  #vlan(): Condition {
    const tag = [0x88a8, 0x9100].reduce<Condition>(
      (all, type) => either(all, this.#test(2, this.#type, type)),
      this.#test(2, this.#type, 0x8100),
    );
    const given = /^\d/.test(this.#peek() ?? '');
    const id = given ? this.#number(4095, 'the number of a VLAN') : undefined;
    const found = id === undefined ? tag : both(tag, this.#test(2, this.#network, id, { mask: 0xfff }));
    this.#type += 4;
    this.#network += 4;
    return found;
  }

  #cast(proto: string, cast: string): Condition {
    if (proto === 'ether')
      return cast === 'multicast'
        ? this.#test(1, 0, 1, { is: '&' })
        : both(this.#test(4, 0, 0xffff_ffff), this.#test(2, 4, 0xffff));
    if (cast === 'broadcast') this.#fail('"multicast", or "ether" before it', 1);
    if (proto === 'ip') return both(this.#ofType('ip'), this.#test(1, this.#network + 16, 224, { is: '>=' }));
    if (proto === 'ip6') return both(this.#ofType('ip6'), this.#test(1, this.#network + 24, 255));
    return this.#fail('"ether", "ip" or "ip6" before it', 1);
  }

  /** A protocol's name alone. */
  #protocol(name: string): Condition {
    if (TYPES[name] !== undefined) return this.#ofType(name);
    return this.#carries(PROTOCOLS[name]!, name === 'icmp6' ? 'ip6' : /^i/.test(name) ? 'ip' : undefined);
  }

  /** IP with this protocol; of IPv6 behind a fragment's header, too. */
  #carries(protocol: number, only?: string): Condition {
    const v4 = both(this.#ofType('ip'), this.#test(1, this.#network + 9, protocol));
    const behind = both(this.#test(1, this.#network + 6, 44), this.#test(1, this.#network + 40, protocol));
    const v6 = both(this.#ofType('ip6'), either(this.#test(1, this.#network + 6, protocol), behind));
    return only === 'ip' ? v4 : only === 'ip6' ? v6 : either(v6, v4);
  }

  #proto({ proto }: Head): Condition {
    // Names of protocols are words of the language themselves: as values they are escaped.
    const word = this.#peek() ?? '';
    const name = word.startsWith('\\') ? word.slice(1) : '';
    if (proto === 'ether') {
      const named = TYPES[name];
      if (named !== undefined) {
        this.#next++;
        return this.#test(2, this.#type, named);
      }
      if (Number(word) < 1536) this.#fail('an EtherType from 1536 on');
      return this.#test(
        2,
        this.#type,
        this.#number(0xffff, `one of \\${Object.keys(TYPES).join(', \\')}, or a number`),
      );
    }
    if (proto !== undefined && proto !== 'ip' && proto !== 'ip6')
      this.#fail('"ether", "ip" or "ip6" before "proto"', 1);
    const named = PROTOCOLS[name];
    if (named !== undefined) this.#next++;
    return this.#carries(
      named ?? this.#number(255, `one of \\${Object.keys(PROTOCOLS).join(', \\')}, or a number`),
      proto,
    );
  }

  /** The condition for one or both of two places. */
  #sided(side: Side, at: (which: 'src' | 'dst') => Condition): Condition {
    if (side === 'src' || side === 'dst') return at(side);
    return (side === 'both' ? both : either)(at('src'), at('dst'));
  }

  #host(head: Head): Condition {
    const { proto, side } = head;
    const word = this.#word('an address');
    const mac = /^[0-9a-f]{1,2}([:.-])[0-9a-f]{1,2}(\1[0-9a-f]{1,2}){4}$/i.test(word);
    if (proto === 'ether') {
      if (!mac) this.#fail('a MAC address such as 52:54:00:12:34:56', 1);
      const bytes = Buffer.from(word.split(/[:.-]/).map((byte) => Number.parseInt(byte, 16)));
      return this.#sided(side, (which) => {
        const at = which === 'src' ? 6 : 0;
        return both(this.#test(4, at, bytes.readUInt32BE(0)), this.#test(2, at + 4, bytes.readUInt16BE(4)));
      });
    }
    if (mac && !isIPv6(word)) this.#fail('"ether" before a MAC address', 1);
    if (isIPv4(word)) return this.#address4(head, v4(word), 0xffff_ffff);
    if (isIPv6(word)) return this.#address6(head, v6(word), 128);
    return this.#fail('an IPv4 or IPv6 address, no name', 1);
  }

  #net(head: Head): Condition {
    const word = this.#word('a network such as 10.0.0.0/8');
    const [address = '', length] = word.split('/');
    if (isIPv6(address)) {
      const bits = length === undefined ? 128 : Number(length);
      if (!/^\d+$/.test(length ?? '0') || bits > 128) this.#fail('a prefix of up to 128 bits', 1);
      return this.#address6(head, v6(address), bits);
    }
    const parts = address.split('.');
    if (!/^\d+(\.\d+){0,3}$/.test(address) || parts.some((part) => Number(part) > 255))
      this.#fail('a network such as 10.0.0.0/8', 1);
    const value = v4([...parts, '0', '0', '0'].slice(0, 4).join('.'));
    let mask = maskOf(8 * parts.length);
    if (length !== undefined) {
      if (!/^\d+$/.test(length) || Number(length) > 32) this.#fail('a prefix of up to 32 bits', 1);
      mask = maskOf(Number(length));
    } else if (this.#take('mask')) {
      const text = this.#word('a mask such as 255.255.0.0');
      if (!isIPv4(text)) this.#fail('a mask such as 255.255.0.0', 1);
      mask = v4(text);
    }
    if ((value & ~mask) !== 0) this.#fail('a network whose other bits are zero', 1);
    return this.#address4(head, value, mask);
  }

  #address4({ proto, side }: Head, value: number, mask: number): Condition {
    const types = proto === undefined ? ['ip', 'arp', 'rarp'] : [proto];
    if (types.some((type) => !['ip', 'arp', 'rarp'].includes(type)))
      this.#fail('"ip", "arp", "rarp" or nothing before an IPv4 address', 1);
    const more = mask === 0xffff_ffff ? {} : { mask };
    return types
      .map((type): Condition => {
        const [src, dst] = type === 'ip' ? [12, 16] : [14, 24];
        if (mask === 0) return this.#ofType(type);
        return both(
          this.#ofType(type),
          this.#sided(side, (which) =>
            this.#test(4, this.#network + (which === 'src' ? src : dst)!, value, more),
          ),
        );
      })
      .reduce(either);
  }

  #address6({ proto, side }: Head, bytes: Buffer, bits: number): Condition {
    if (proto !== undefined && proto !== 'ip6') this.#fail('"ip6" or nothing before an IPv6 address', 1);
    const words = [0, 1, 2, 3].map((i) => ({
      value: bytes.readUInt32BE(4 * i),
      mask: maskOf(bits - 32 * i),
    }));
    if (words.some(({ value, mask }) => (value & ~mask) !== 0))
      this.#fail('a network whose other bits are zero', 1);
    const tests = (start: number) =>
      words
        .filter(({ mask }) => mask !== 0)
        .map(({ value, mask }, i) =>
          this.#test(4, start + 4 * i, value, mask === 0xffff_ffff ? {} : { mask }),
        )
        .reduce<Condition>(both, this.#ofType('ip6'));
    return this.#sided(side, (which) => tests(this.#network + (which === 'src' ? 8 : 24)));
  }

  #namedPort(head: Head): Condition {
    const named = PORTS[this.#peek() ?? ''];
    if (named === undefined)
      return this.#port(head, this.#number(65_535, `a port (${Object.keys(PORTS).join(', ')}), or a number`));
    this.#next++;
    const { port, only } = named;
    if (only === undefined) return this.#port(head, port);
    if (head.proto !== undefined && head.proto !== only) this.#fail(`a port of ${head.proto}`, 1);
    return this.#port({ ...head, proto: only }, port);
  }

  #port({ proto, side }: Head, from: number, to = from): Condition {
    const protocols = proto === undefined ? ['tcp', 'udp', 'sctp'] : [proto];
    if (protocols.some((name) => !['tcp', 'udp', 'sctp'].includes(name)))
      this.#fail('"tcp", "udp", "sctp" or nothing before a port', 1);
    const of = (protocolAt: number) =>
      protocols.map((name): Condition => this.#test(1, protocolAt, PROTOCOLS[name]!)).reduce(either);
    const ports = (at: number, more: Partial<Test>) =>
      this.#sided(side, (which) => {
        const place = at + (which === 'src' ? 0 : 2);
        if (from === to) return this.#test(2, place, from, more);
        return both(
          this.#test(2, place, from, { ...more, is: '>=' }),
          not(this.#test(2, place, to, { ...more, is: '>' })),
        );
      });
    const network = this.#network;
    return either(
      both(
        both(this.#ofType('ip'), of(network + 9)),
        both(this.#isFirst(), ports(network, { header: network })),
      ),
      both(both(this.#ofType('ip6'), of(network + 6)), ports(network + 40, {})),
    );
  }

  /** Of a datagram's fragments only the first has the header of what it carries. */
  #isFirst(): Condition {
    return not(this.#test(2, this.#network + 6, 0x1fff, { is: '&' }));
  }

  /** `tcp[13] & 2 != 0` */
  #bytes(proto: string): Condition {
    this.#need('[');
    const [place = '', size = '1'] = this.#word('a place in the header').split(':');
    const offset = PLACES[place] ?? Number(place);
    if (!Number.isInteger(offset) || offset > 100) this.#fail('a place in the header, from 0 to 100', 1);
    if (!['1', '2', '4'].includes(size)) this.#fail('1, 2 or 4 bytes', 1);
    this.#need(']');
    let mask: number | undefined;
    if (this.#take('&')) {
      mask = this.#bits();
    }
    const relation = this.#take('=', '==', '!=', '>', '<', '>=', '<=');
    if (relation === undefined) this.#fail('"=", "!=", ">", "<", ">=" or "<="');
    const value = this.#bits();
    const width = Number(size) as 1 | 2 | 4;
    const network = this.#network;
    const inIp = PROTOCOLS[proto] !== undefined && proto !== 'icmp6';
    const at = proto === 'ether' ? offset : network + offset + (proto === 'icmp6' ? 40 : 0);
    const make = (is: Test['is']): Condition =>
      this.#test(width, at, value, {
        is,
        ...(mask === undefined ? {} : { mask }),
        ...(inIp ? { header: network } : {}),
      });
    const compared: Condition =
      relation === '!=' ? not(make('=')) :
      relation === '<' ? not(make('>=')) :
      relation === '<=' ? not(make('>')) :
      make(relation === '>' || relation === '>=' ? relation : '='); // biome-ignore format: a table
    if (proto === 'ether') return compared;
    if (TYPES[proto] !== undefined) return both(this.#ofType(proto), compared);
    if (proto === 'icmp6')
      return both(both(this.#ofType('ip6'), this.#test(1, network + 6, PROTOCOLS.icmp6!)), compared);
    return both(both(this.#carries(PROTOCOLS[proto]!, 'ip'), this.#isFirst()), compared);
  }

  /** A number, or names with "|" between them. */
  #bits(): number {
    const open = this.#take('(') !== undefined;
    let value = 0;
    do {
      const named = VALUES[this.#peek() ?? ''];
      if (named === undefined) value |= this.#number(0xffff_ffff, 'a number, or a name such as tcp-syn,');
      else this.#next++;
      value = (value | (named ?? 0)) >>> 0;
    } while (this.#take('|'));
    if (open) this.#need(')');
    return value;
  }
}

const v4 = (text: string) => text.split('.').reduce((sum, part) => sum * 256 + Number(part), 0);

function v6(text: string): Buffer {
  // An address that ends as one of IPv4 does.
  const plain = text.replace(/\d+\.\d+\.\d+\.\d+$/, (last) => {
    const value = v4(last);
    return `${(value >>> 16).toString(16)}:${(value & 0xffff).toString(16)}`;
  });
  const [left = '', right] = plain.split('::');
  const words = (part: string) => (part === '' ? [] : part.split(':'));
  const [head, tail] = [words(left), words(right ?? '')];
  const zeros = right === undefined ? 0 : 8 - head.length - tail.length;
  const bytes = Buffer.alloc(16);
  [...head, ...Array<string>(zeros).fill('0'), ...tail].forEach((word, i) => {
    bytes.writeUInt16BE(Number.parseInt(word, 16), 2 * i);
  });
  return bytes;
}

/** The mask of the first `bits` of 32. */
const maskOf = (bits: number) =>
  bits <= 0 ? 0 : bits >= 32 ? 0xffff_ffff : (0xffff_ffff << (32 - bits)) >>> 0;
