/** Where a user's programs keep what doesn't outlive a reboot. */
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/**
 * Vireo's directory: `/run/vireo` for root, `$XDG_RUNTIME_DIR/vireo` for others, and where no session set that
 * (containers, cron), `vireo-UID` in the directory for temporary files.
 */
export function runtimeDirectory(
  env: NodeJS.ProcessEnv = process.env,
  uid = process.getuid?.() ?? -1,
): string {
  if (uid === 0) return '/run/vireo';
  if (env.XDG_RUNTIME_DIR) return join(env.XDG_RUNTIME_DIR, 'vireo');
  return join(tmpdir(), `vireo-${uid}`);
}
