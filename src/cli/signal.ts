/** How a program that runs until it is told to stop hears of that. */

/**
 * Milliseconds in which a second signal is the first one's echo: npx and timeout(1) send one to the program that
 * the terminal, or they themselves, have sent to its whole group.
 */
const ECHO = 500;

/** Resolves at the first SIGINT or SIGTERM; one that comes later than its echo has its default effect: the end. */
export function firstSignal(): Promise<void> {
  return new Promise((resolve) => {
    const stop = () => {
      setTimeout(() => {
        process.removeListener('SIGINT', stop);
        process.removeListener('SIGTERM', stop);
      }, ECHO).unref();
      resolve();
    };
    process.on('SIGINT', stop);
    process.on('SIGTERM', stop);
  });
}
