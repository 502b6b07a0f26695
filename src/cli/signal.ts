/** How a program that runs until it is told to stop hears of that. */

/** Resolves at the first SIGINT or SIGTERM; the next one has its default effect, which is immediate. */
export function firstSignal(): Promise<void> {
  return new Promise((resolve) => {
    const stop = () => {
      process.removeListener('SIGINT', stop);
      process.removeListener('SIGTERM', stop);
      resolve();
    };
    process.on('SIGINT', stop);
    process.on('SIGTERM', stop);
  });
}
