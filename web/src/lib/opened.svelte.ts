/** Credentials that were opened in this page. They are nowhere else: closing the page loses them. */

import { SvelteMap } from 'svelte/reactivity';
import { api } from './api';
import { forgetIdentity, identityOf, openSealed, type OpenedFile } from './identity';

const opened = new SvelteMap<string, readonly OpenedFile[]>();

/** What was opened for a session. */
export function openedFor(session: string): readonly OpenedFile[] | undefined {
  return opened.get(session);
}

/** Fetches the credentials of a session, once, and opens them with the key that this browser kept. */
export async function fetchAndOpen(session: string): Promise<void> {
  const identity = identityOf(session);
  if (identity === null) throw new Error('This browser has no key for these credentials.');
  // Loaded first: the server hands the credentials out once.
  await import('age-encryption');
  const sealed = await api.credentials(session);
  try {
    opened.set(session, await openSealed(new Uint8Array(await sealed.arrayBuffer()), identity));
  } catch (error) {
    // They cannot be fetched again, but may be opened elsewhere.
    save(sealed, `${session}.age`);
    throw error;
  }
  forgetIdentity(session);
}

/** Offers bytes as a file to be saved. */
export function save(content: Blob, name: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  // Not at once: the download has only been asked for.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A file's last name. */
export function baseName(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}
