/**
 * What passt.ts runs in a network namespace: gives it a network, answers UDP on its loopback, and runs passt, which
 * ends with it.
 */
import { execFileSync, spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { writeFileSync } from 'node:fs';
import { NETWORK, passtCommand } from './passt.ts';

const [socket = ''] = process.argv.slice(2);
const { host, gateway, prefix, echoPort } = NETWORK;
const ip = (...args: string[]) => execFileSync('ip', args);

ip('link', 'set', 'lo', 'up');
ip('link', 'add', 'veth0', 'type', 'veth', 'peer', 'name', 'veth1');
for (const name of ['veth0', 'veth1']) ip('link', 'set', name, 'up');
ip('address', 'add', `${host}/${prefix}`, 'dev', 'veth0');
ip('route', 'add', 'default', 'via', gateway);
// passt sends a guest's pings through sockets that not every group may have.
writeFileSync('/proc/sys/net/ipv4/ping_group_range', '0 0');

const echo = createSocket('udp4', (bytes, from) => echo.send(bytes, from.port, from.address));
echo.bind(echoPort, '127.0.0.1');
const [program, ...args] = passtCommand(socket);
const passt = spawn(program, args, { stdio: 'inherit' });
passt.on('exit', (code) => process.exit(code ?? 1));
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => passt.kill());
