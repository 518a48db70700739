/** The keys that this browser makes for sign-ins, and what they open. A key stays in this browser. */

const PREFIX = 'holdfast.identity.';

export interface Identity {
  /** The secret; never sent anywhere. */
  identity: string;
  /** The public key that credentials are sealed to. */
  recipient: string;
}

/** A file of opened credentials. */
export interface OpenedFile {
  /** Relative to the home directory. */
  path: string;
  mode: number;
  bytes: Uint8Array<ArrayBuffer>;
}

/** Loaded where it is needed: most pages open without it. */
const age = () => import('age-encryption');

export async function makeIdentity(): Promise<Identity> {
  const { generateX25519Identity, identityToRecipient } = await age();
  const identity = await generateX25519Identity();
  return { identity, recipient: await identityToRecipient(identity) };
}

/** Keeps the key of a session until its credentials are opened. False where nothing can be kept. */
export function keepIdentity(session: string, identity: string): boolean {
  try {
    localStorage.setItem(PREFIX + session, identity);
    return true;
  } catch {
    return false;
  }
}

export function identityOf(session: string): string | null {
  try {
    return localStorage.getItem(PREFIX + session);
  } catch {
    return null;
  }
}

export function forgetIdentity(session: string): void {
  try {
    localStorage.removeItem(PREFIX + session);
  } catch {
    // What cannot be read cannot be there.
  }
}

/** Opens sealed credentials. Throws when the key is another, or the content is not in the known form. */
export async function openSealed(sealed: Uint8Array, identity: string): Promise<OpenedFile[]> {
  const { Decrypter } = await age();
  const decrypter = new Decrypter();
  decrypter.addIdentity(identity);
  return filesOf(await decrypter.decrypt(sealed, 'text'));
}

/** The files in opened credentials. */
export function filesOf(text: string): OpenedFile[] {
  const wrong = new Error('The credentials are not in the known form.');
  const bundle: unknown = JSON.parse(text);
  if (typeof bundle !== 'object' || bundle === null || !('files' in bundle)) throw wrong;
  if (!Array.isArray(bundle.files)) throw wrong;
  return bundle.files.map((file: unknown): OpenedFile => {
    const { path, mode, content } = file as Record<string, unknown>;
    if (typeof path !== 'string' || typeof mode !== 'number' || typeof content !== 'string')
      throw wrong;
    return { path, mode, bytes: Uint8Array.from(atob(content), (c) => c.charCodeAt(0)) };
  });
}

/** The text of a file, or null when it is none. */
export function textOf(file: OpenedFile): string | null {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(file.bytes);
  } catch {
    return null;
  }
}
