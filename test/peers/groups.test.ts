/**
 * Snooping with the kernel on both sides: a Linux bridge that asks (IGMPv3 and MLDv2), and two kernels that are members
 * by sockets of theirs, one of which speaks IGMPv2 and MLDv1. A port beside them, and what each socket gets, show that frames reach members alone.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { ip, Namespace, ownNetwork } from '../support/network.ts';
import { until } from '../support/until.ts';
import { type Child, scratch } from './process.ts';

/** Of IGMP and MLD, which the kernels speak as members. */
const VERSIONS = { one: [3, 2], two: [2, 1] };
const [G, G6] = ['239.1.1.1', 'ff0e::1:1'];
/** Sources that nobody is. */
const OTHERS = { [G]: '10.0.0.77', [G6]: 'fe80::77' };

/**
 * Joins and leaves as standard input says, for all sources or one, and prints what comes for its groups:
 * `<group> <number>`.
 */
const MEMBER = `
  const { createSocket } = require('node:dgram');
  const open = (type, group) => {
    const socket = createSocket({ type, reuseAddr: true });
    socket.on('message', (bytes) => console.log(group + ' ' + bytes));
    socket.bind(5000, group);
    return socket;
  };
  const of = { '${G}': open('udp4', '${G}'), '${G6}': open('udp6', '${G6}') };
  const at = { '${G}': process.argv[1], '${G6}': '::%eth0' };
  require('node:readline').createInterface(process.stdin).on('line', (line) => {
    const [word, group, source] = line.split(' ');
    if (source) of[group][word + 'SourceSpecificMembership'](source, group, at[group]);
    else of[group][word + 'Membership'](group, at[group]);
    console.log(line);
  });`;

/** Sends the numbers that standard input says to both groups. */
const SENDER = `
  const { createSocket } = require('node:dgram');
  const four = createSocket('udp4');
  const six = createSocket('udp6');
  four.bind(0, () => { four.setMulticastInterface(process.argv[1]); four.setMulticastTTL(4); });
  six.bind(0, () => { six.setMulticastInterface('::%br0'); six.setMulticastTTL(4); });
  require('node:readline').createInterface(process.stdin).on('line', (line) => {
    four.send(line, 5000, '${G}');
    six.send(line, 5000, '${G6}');
  });`;

describe('a Linux bridge that asks, and kernels that are members', { skip: ownNetwork() }, () => {
  const directory = scratch('groups');
  const spaces: Namespace[] = [];
  let vswitch: Switch;
  let witness: VirtioUser;
  let sender: Child;
  const members: Record<string, Child> = {};
  let number = 0;

  async function plug(name: string): Promise<Namespace> {
    const there = await Namespace.open();
    spaces.push(there);
    ip(`link add ${name} type veth peer name eth0 netns ${there.id}`);
    ip(`link set ${name} up`);
    there.ip('link set eth0 up');
    return there;
  }

  before(async () => {
    const asking = await plug('ask');
    asking.ip(
      'link add br0 type bridge mcast_querier 1 mcast_igmp_version 3 mcast_mld_version 2 mcast_query_use_ifaddr 1 ' +
        'mcast_query_interval 500 mcast_query_response_interval 100 mcast_startup_query_interval 100',
    );
    asking.ip('link set eth0 master br0');
    asking.ip('addr add 10.0.0.1/24 dev br0');
    const path = join(directory.path, 'witness');
    vswitch = await createSwitch({
      workers: 2,
      bridges: [{ name: 'default', snooping: true }],
      ports: [
        { name: 'ask', type: 'af-packet', target: 'ask' },
        { name: 'witness', type: 'vhost-user', target: path },
      ],
    });
    for (const [i, name] of ['one', 'two'].entries()) {
      const there = await plug(name);
      there.ip(`addr add 10.0.0.${i + 2}/24 dev eth0`);
      const [four, six] = VERSIONS[name as keyof typeof VERSIONS];
      const old = there.start(
        'sh',
        '-c',
        `cd /proc/sys/net; echo ${four} > ipv4/conf/eth0/force_igmp_version; echo ${six} > ipv6/conf/eth0/force_mld_version`,
      );
      assert.equal(await old.exited, 0, old.output);
      await vswitch.addPort({ name, type: 'af-packet', target: name });
      members[name] = there.start(process.execPath, '-e', MEMBER, `10.0.0.${i + 2}`);
    }
    await until(
      () => vswitch.ports().every(({ name, state }) => name === 'witness' || state === 'up'),
      'all are up',
    );
    witness = await VirtioUser.open({ path });
    sender = asking.start(process.execPath, '-e', SENDER, '10.0.0.1');
    asking.ip('link set br0 up');
  });
  after(async () => {
    for (const child of [sender, ...Object.values(members)]) await child?.end('SIGKILL');
    await witness?.close();
    await vswitch?.close();
    for (const there of spaces) await there[Symbol.asyncDispose]();
    directory.remove();
  });

  const groups = () =>
    vswitch
      .groups()
      .groups.filter(({ group }) => group === G || group === G6)
      .map(({ group, ports }) => `${group} ${ports.map(({ port }) => port).sort()}`);
  const say = async (name: string, word: 'add' | 'drop', from: Partial<Record<string, string>> = {}) => {
    for (const group of [G, G6]) members[name]!.write(`${word} ${group} ${from[group] ?? ''}\n`);
  };
  /** Marks of the frames for the groups that the witness has got since it was asked last. */
  function witnessed(): string[] {
    const found: string[] = [];
    for (let came = witness.receive(); came !== undefined; came = witness.receive()) {
      const text = Buffer.from(came).toString('latin1');
      const mark = /#\d+#/.exec(text);
      if (mark) found.push(mark[0]);
    }
    return found;
  }
  /** Addresses that the sender's datagrams come from, of both families. */
  const sources = () => {
    const [six] = /fe80::[0-9a-f:]+/.exec(spaces[0]!.ip('-6 addr show dev br0 scope link'))!;
    return { [G]: '10.0.0.1', [G6]: six };
  };
  /** Sends to both groups until each of these has got what was sent last; its mark. */
  async function reaches(...names: string[]): Promise<string> {
    let mark = '';
    let sent = 0;
    await until(() => {
      if (Date.now() - sent > 200) {
        sent = Date.now();
        mark = `#${++number}#`;
        sender.write(`${mark}\n`);
      }
      return names.every((name) =>
        [G, G6].every((group) => members[name]!.output.includes(`${group} ${mark}\n`)),
      );
    }, `datagrams come to ${names}`);
    return mark;
  }
  /** What goes to a port while something is done. */
  async function captured(port: string, act: () => Promise<unknown>): Promise<string> {
    const capture = await vswitch.capture({ port, filter: 'udp port 5000' });
    let text = '';
    const whole = (async () => {
      for await (const bytes of capture.stream()) text += bytes.toString('latin1');
    })();
    await act();
    capture.stop();
    await whole;
    return text;
  }

  test('reports are learned, and frames come to members alone', async () => {
    await until(() => vswitch.groups().routers.length === 2, 'both families are asked for');
    assert.deepEqual(
      vswitch.groups().routers.map(({ family, querier }) => [family, querier?.port]),
      [
        ['IPv4', 'ask'],
        ['IPv6', 'ask'],
      ],
    );
    assert.equal(vswitch.groups().routers[0]!.querier!.address, '10.0.0.1');
    await say('one', 'add');
    await until(() => groups().join() === `${G} one,${G6} one`, 'both kernels have reported');
    // The first seconds of a querier are over when frames don't come to the witness any more.
    for (let got = true; got; ) {
      witnessed();
      const mark = await reaches('one');
      got = witnessed().includes(mark);
    }
    await say('two', 'add');
    await until(() => groups().join() === `${G} one,two,${G6} one,two`, 'the other one has reported');
    await reaches('one', 'two');
    assert.deepEqual(witnessed(), [], 'who has joined nothing gets nothing');
  });

  test('who leaves gets no more, when the querier has asked in vain; fast leave takes no question', async () => {
    await say('one', 'drop');
    await until(() => groups().join() === `${G} two,${G6} two`, 'one port is out');
    const toTwo = captured('two', async () => {
      const toOne = await captured('one', () => reaches('two'));
      assert.doesNotMatch(toOne, /#\d+#/);
    });
    assert.match(await toTwo, /#\d+#/);
    await vswitch.setPort('two', { fastLeave: true });
    await say('two', 'drop');
    await until(() => groups().length === 0, 'nobody is in');
    assert.deepEqual(witnessed(), []);
  });

  test('a kernel that wants some sources alone is a member like others, until it wants none', async () => {
    // Of IGMPv3 and MLDv2: the other one speaks versions without sources.
    await say('one', 'add', OTHERS);
    await until(() => groups().join() === `${G} one,${G6} one`, 'it has reported');
    await say('one', 'add', sources());
    await reaches('one');
    assert.deepEqual(witnessed(), []);
    // It doesn't say that it has others; and the querier asks for the one that it doesn't want any more.
    await say('one', 'drop', sources());
    const toOne = await captured('one', async () => {
      await say('two', 'add');
      await until(() => groups().join() === `${G} one,two,${G6} one,two`, 'the other one has reported');
      await reaches('two');
    });
    assert.match(toOne, /#\d+#/);
    await say('one', 'drop', OTHERS);
    await say('two', 'drop');
    await until(() => groups().every((entry) => entry.endsWith(' one')), 'the other one is out');
  });

  test('the switch asks where nobody else does, and the kernels answer', async () => {
    await vswitch.removePort('ask');
    await vswitch.setBridge('default', { snooping: null });
    await vswitch.setBridge('default', { snooping: true });
    for (const name of ['one', 'two']) await say(name, 'add');
    await until(() => groups().join() === `${G} one,two,${G6} one,two`, 'both have reported');
    await vswitch.setPort('two', { fastLeave: null });
    // What was learned is gone, and nothing but a question brings it back.
    await vswitch.setBridge('default', { snooping: null });
    await vswitch.setBridge('default', { snooping: true, querier: true });
    assert.deepEqual(groups(), []);
    await until(() => groups().join() === `${G} one,two,${G6} one,two`, 'both have answered');
    for (const [name, left] of [
      ['two', `${G} one,${G6} one`],
      ['one', ''],
    ] as const) {
      await say(name, 'drop');
      await until(() => groups().join() === left, `${name} is out`);
    }
    // Where it wants some sources, it says of the last one that it drops no more than of the others: it is asked.
    const both = { [G]: '10.0.0.1', [G6]: 'fe80::1' };
    for (const from of [both, OTHERS]) await say('one', 'add', from);
    await until(() => groups().join() === `${G} one,${G6} one`, 'it has reported');
    const questions = await vswitch.capture({ port: 'one', filter: `host ${G} or host ${G6}`, count: 2 });
    await say('one', 'drop', both);
    for await (const _ of questions.stream());
    await until(
      () => vswitch.groups().groups.every(({ ports }) => ports[0]!.expires! > 200),
      'it has others',
    );
    await say('one', 'drop', OTHERS);
    await until(() => groups().length === 0, 'it has none');
  });
});
