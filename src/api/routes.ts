/**
 * What can be asked of the control socket, a path each, and what a switch is asked for it:
 *
 *     GET    /v1/status        SwitchStatus
 *     GET    /v1/ports         PortStatus[]
 *     POST   /v1/ports         body PortSpec or { "spec": "NAME=TYPE:TARGET…" }; 201, PortDetail
 *     GET    /v1/ports/NAME    PortDetail
 *     PATCH  /v1/ports/NAME    body fields to set anew, null: the default; PortDetail
 *     DELETE /v1/ports/NAME    204
 *     GET    /v1/bridges       BridgeStatus[]
 *     POST   /v1/bridges       body BridgeSpec; 201, BridgeStatus
 *     GET    /v1/bridges/NAME  BridgeStatus
 *     PATCH  /v1/bridges/NAME  body fields to set anew, null: the default; BridgeStatus
 *     DELETE /v1/bridges/NAME  204
 *     GET    /v1/mirrors       MirrorStatus[]
 *     POST   /v1/mirrors       body MirrorSpec; 201, MirrorStatus
 *     GET    /v1/mirrors/NAME  MirrorStatus
 *     PATCH  /v1/mirrors/NAME  body fields to set anew, null: the default; MirrorStatus
 *     DELETE /v1/mirrors/NAME  204
 *     GET    /v1/config        SwitchOptions: a file with them recreates the switch
 *     PUT    /v1/config        body SwitchOptions; Applied: what differed, and what was done
 *     GET    /v1/capture?port=NAME|any[&filter=…][&snaplen=N][&count=N][&seconds=N]
 *                              the frames as pcapng, until the capture ends or the client leaves
 *     DELETE /v1/capture/ID    204: lets the capture end; its answer had the ID in the header capture-id
 *     GET    /v1/fdb           FdbEntry[]; with ?port=NAME, bridge=NAME, vlan=N those alone, and so below
 *     POST   /v1/fdb           body AddressSpec, an address that is entered for good; 201, AddressSpec
 *     DELETE /v1/fdb           { "flushed": number of entries }; with static=true those that were entered too
 *     DELETE /v1/fdb/MAC       204: an address that was entered
 *     GET    /v1/groups        GroupsStatus; with ?port=NAME, bridge=NAME, vlan=N those alone, and so below
 *     POST   /v1/groups        body GroupSpec, a port that is entered into a group for good; 201, GroupSpec
 *     DELETE /v1/groups/GROUP  204: ports that were entered into a group
 */
import type { IncomingMessage } from 'node:http';
import type {
  AddressFilter,
  AddressSpec,
  Applied,
  BridgeChange,
  BridgeSpec,
  BridgeStatus,
  CaptureOptions,
  CaptureStream,
  FdbEntry,
  GroupMember,
  GroupSpec,
  GroupsStatus,
  MirrorChange,
  MirrorSpec,
  MirrorStatus,
  PortChange,
  PortDetail,
  PortSpec,
  PortStatus,
  SwitchOptions,
  SwitchStatus,
} from '../switch/types.ts';

/** What the API needs of a switch. */
export interface SwitchControl {
  readonly name: string;
  addPort(spec: PortSpec): Promise<void>;
  removePort(name: string): Promise<void>;
  setPort(name: string, change: PortChange): Promise<void>;
  ports(): PortStatus[];
  port(name: string): PortDetail;
  addBridge(spec: BridgeSpec): Promise<void>;
  setBridge(name: string, change: BridgeChange): Promise<void>;
  removeBridge(name: string): Promise<void>;
  bridges(): BridgeStatus[];
  bridge(name: string): BridgeStatus;
  addMirror(spec: MirrorSpec): Promise<void>;
  setMirror(name: string, change: MirrorChange): Promise<void>;
  removeMirror(name: string): Promise<void>;
  mirrors(): MirrorStatus[];
  mirror(name: string): MirrorStatus;
  config(): SwitchOptions;
  apply(options: SwitchOptions): Promise<Applied>;
  fdb(): FdbEntry[];
  flushFdb(filter?: AddressFilter & { static?: boolean }): Promise<number>;
  addAddress(spec: AddressSpec): Promise<void>;
  removeAddress(mac: string, filter?: AddressFilter): Promise<void>;
  groups(): GroupsStatus;
  addGroup(spec: GroupSpec): Promise<GroupSpec>;
  removeGroup(group: string, filter?: AddressFilter): Promise<void>;
  status(): SwitchStatus;
  capture(options: CaptureOptions): Promise<CaptureStream>;
  stopCapture(id: number): void;
}

/** Bytes of a request's body. */
const MAX_BODY = 1024 * 1024;

/** The answer to a request that can't be served. */
export class HttpError extends Error {
  readonly status: number;
  readonly code: string;
  readonly headers: Record<string, string>;

  constructor(status: number, code: string, message: string, headers: Record<string, string> = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.headers = headers;
  }
}

export interface Reply {
  status: number;
  body?: unknown;
  headers?: Record<string, string>;
  /** What is answered instead of a body, as it comes. */
  capture?: CaptureStream;
}

/** One request, its path taken apart. */
interface Call {
  control: SwitchControl;
  request: IncomingMessage;
  /** What stands for NAME in the route's path. */
  name: string;
  query: URLSearchParams;
}

interface Route {
  path: RegExp;
  /** Parameters of the query that the route knows. */
  query?: string[];
  methods: Record<string, (call: Call) => Reply | Promise<Reply>>;
}

const ok = (body: unknown): Reply => ({ status: 200, body });

export const ROUTES: Route[] = [
  { path: /^\/v1\/status$/, methods: { GET: ({ control }) => ok(control.status()) } },
  {
    path: /^\/v1\/ports$/,
    methods: {
      GET: ({ control }) => ok(control.ports()),
      POST: async ({ control, request }) => {
        const spec = await readSpec(request);
        await control.addPort(spec);
        return { status: 201, body: control.port(spec.name) };
      },
    },
  },
  {
    path: /^\/v1\/ports\/([^/]+)$/,
    methods: {
      GET: ({ control, name }) => ok(control.port(name)),
      // The switch checks it.
      PATCH: async ({ control, name, request }) => {
        await control.setPort(name, (await readJson(request)) as PortChange);
        return ok(control.port(name));
      },
      DELETE: async ({ control, name }) => {
        await control.removePort(name);
        return { status: 204 };
      },
    },
  },
  {
    path: /^\/v1\/bridges$/,
    methods: {
      GET: ({ control }) => ok(control.bridges()),
      POST: async ({ control, request }) => {
        // The switch checks it.
        const spec = (await readJson(request)) as BridgeSpec;
        await control.addBridge(spec);
        return { status: 201, body: control.bridge(spec.name) };
      },
    },
  },
  {
    path: /^\/v1\/bridges\/([^/]+)$/,
    methods: {
      GET: ({ control, name }) => ok(control.bridge(name)),
      PATCH: async ({ control, name, request }) => {
        await control.setBridge(name, (await readJson(request)) as BridgeChange);
        return ok(control.bridge(name));
      },
      DELETE: async ({ control, name }) => {
        await control.removeBridge(name);
        return { status: 204 };
      },
    },
  },
  {
    path: /^\/v1\/mirrors$/,
    methods: {
      GET: ({ control }) => ok(control.mirrors()),
      POST: async ({ control, request }) => {
        // The switch checks it.
        const spec = (await readJson(request)) as MirrorSpec;
        await control.addMirror(spec);
        return { status: 201, body: control.mirror(spec.name) };
      },
    },
  },
  {
    path: /^\/v1\/mirrors\/([^/]+)$/,
    methods: {
      GET: ({ control, name }) => ok(control.mirror(name)),
      PATCH: async ({ control, name, request }) => {
        await control.setMirror(name, (await readJson(request)) as MirrorChange);
        return ok(control.mirror(name));
      },
      DELETE: async ({ control, name }) => {
        await control.removeMirror(name);
        return { status: 204 };
      },
    },
  },
  {
    path: /^\/v1\/config$/,
    methods: {
      GET: ({ control }) => ok(control.config()),
      // The switch checks it.
      PUT: async ({ control, request }) =>
        ok(await control.apply((await readJson(request)) as SwitchOptions)),
    },
  },
  {
    path: /^\/v1\/fdb$/,
    query: ['port', 'bridge', 'vlan', 'static'],
    methods: {
      GET: ({ control, query }) => {
        const { port, bridge, vlan } = readFilter(query);
        if (port !== undefined) control.port(port);
        if (bridge !== undefined) control.bridge(bridge);
        return ok(
          control
            .fdb()
            .filter((entry) => port === undefined || entry.port === port)
            .filter((entry) => bridge === undefined || entry.bridge === bridge)
            .filter((entry) => vlan === undefined || entry.vlan === vlan),
        );
      },
      POST: async ({ control, request }) => {
        // The switch checks it.
        const spec = (await readJson(request)) as AddressSpec;
        await control.addAddress(spec);
        return { status: 201, body: spec };
      },
      DELETE: async ({ control, query }) => {
        const statics = query.get('static');
        if (statics !== null && statics !== 'true')
          throw new HttpError(400, 'BAD_REQUEST', `static: expected true, found ${JSON.stringify(statics)}`);
        const flushed = await control.flushFdb({
          ...readFilter(query),
          ...(statics === 'true' && { static: true }),
        });
        return ok({ flushed });
      },
    },
  },
  {
    path: /^\/v1\/fdb\/([^/]+)$/,
    query: ['port', 'bridge', 'vlan'],
    methods: {
      DELETE: async ({ control, name, query }) => {
        await control.removeAddress(name, readFilter(query));
        return { status: 204 };
      },
    },
  },
  {
    path: /^\/v1\/groups$/,
    query: ['port', 'bridge', 'vlan'],
    methods: {
      GET: ({ control, query }) => {
        const { port, bridge, vlan } = readFilter(query);
        if (port !== undefined) control.port(port);
        if (bridge !== undefined) control.bridge(bridge);
        const isMeant = (entry: { bridge: string; vlan: number; ports: GroupMember[] }) =>
          (port === undefined || entry.ports.some((member) => member.port === port)) &&
          (bridge === undefined || entry.bridge === bridge) &&
          (vlan === undefined || entry.vlan === vlan);
        const { groups, routers } = control.groups();
        return ok({ groups: groups.filter(isMeant), routers: routers.filter(isMeant) });
      },
      POST: async ({ control, request }) => {
        // The switch checks it.
        return { status: 201, body: await control.addGroup((await readJson(request)) as GroupSpec) };
      },
    },
  },
  {
    path: /^\/v1\/groups\/([^/]+)$/,
    query: ['port', 'bridge', 'vlan'],
    methods: {
      DELETE: async ({ control, name, query }) => {
        await control.removeGroup(name, readFilter(query));
        return { status: 204 };
      },
    },
  },
  {
    path: /^\/v1\/capture$/,
    query: ['port', 'filter', 'snaplen', 'count', 'seconds'],
    methods: {
      GET: async ({ control, query }) => {
        const options = [...query].map(([key, value]) => [
          key,
          key !== 'port' && key !== 'filter' && /^\d+$/.test(value) ? Number(value) : value,
        ]);
        // The switch checks it.
        const capture = await control.capture(Object.fromEntries(options) as CaptureOptions);
        const headers = { 'content-type': 'application/x-pcapng', 'capture-id': String(capture.id) };
        return { status: 200, headers, capture };
      },
    },
  },
  {
    path: /^\/v1\/capture\/(\d+)$/,
    methods: {
      DELETE: ({ control, name }) => {
        control.stopCapture(Number(name));
        return { status: 204 };
      },
    },
  },
];

/** Which addresses are meant. Throws HttpError. */
function readFilter(query: URLSearchParams): AddressFilter {
  const [port, bridge, vlan] = ['port', 'bridge', 'vlan'].map((key) => query.get(key) ?? undefined);
  if (vlan !== undefined && !(/^\d{1,4}$/.test(vlan) && Number(vlan) <= 4094))
    throw new HttpError(
      400,
      'BAD_REQUEST',
      `vlan: expected a number from 0 to 4094, found ${JSON.stringify(vlan)}`,
    );
  return {
    ...(port !== undefined && { port }),
    ...(bridge !== undefined && { bridge }),
    ...(vlan !== undefined && { vlan: Number(vlan) }),
  };
}

/** The port in a request's body. Throws HttpError and SwitchError. */
async function readSpec(request: IncomingMessage): Promise<PortSpec> {
  const body = await readJson(request);
  // Only this route needs the schemas, whose library takes a while to load.
  const { checkPortSpec } = await import('../switch/spec.ts');
  if (typeof body !== 'object' || body === null || !Object.hasOwn(body, 'spec')) {
    if (typeof body === 'string')
      throw new HttpError(400, 'BAD_REQUEST', 'a port in one line goes into { "spec": "…" }');
    return checkPortSpec(body);
  }
  const { spec, ...others } = body as Record<string, unknown>;
  if (typeof spec !== 'string' || Object.keys(others).length > 0) {
    throw new HttpError(
      400,
      'BAD_REQUEST',
      'expected { "spec": "NAME=TYPE:TARGET…" } with no other key, or a port',
    );
  }
  return checkPortSpec(spec);
}

async function readJson(request: IncomingMessage): Promise<unknown> {
  const type = request.headers['content-type']?.split(';')[0]?.trim().toLowerCase();
  if (type !== 'application/json') {
    throw new HttpError(
      415,
      'UNSUPPORTED_MEDIA_TYPE',
      'send JSON, with the header content-type: application/json',
    );
  }
  const tooLarge = () => new HttpError(413, 'TOO_LARGE', `a request's body has at most ${MAX_BODY} bytes`);
  if (Number(request.headers['content-length'] ?? 0) > MAX_BODY) throw tooLarge();
  const chunks: Buffer[] = [];
  let size = 0;
  // Leaving the loop must not destroy the stream: the answer goes out on the same socket.
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > MAX_BODY) throw tooLarge();
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString());
  } catch (error) {
    throw new HttpError(400, 'BAD_REQUEST', `the body is no JSON: ${(error as Error).message}`);
  }
}
