export * from './switch/types.ts';
