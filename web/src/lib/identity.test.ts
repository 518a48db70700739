import { Encrypter } from 'age-encryption';
import { describe, expect, it } from 'vitest';
import { filesOf, makeIdentity, openSealed, textOf } from './identity';

const bundle = JSON.stringify({
  files: [{ path: '.tool/auth.json', mode: 0o600, content: btoa('{"token":"hush"}') }],
});

async function seal(recipient: string): Promise<Uint8Array> {
  const encrypter = new Encrypter();
  encrypter.addRecipient(recipient);
  return encrypter.encrypt(bundle);
}

describe('identities', () => {
  it('open what was sealed to them, and nothing else', async () => {
    const mine = await makeIdentity();
    const other = await makeIdentity();
    expect(mine.recipient).toMatch(/^age1/);
    const [file] = await openSealed(await seal(mine.recipient), mine.identity);
    expect(file).toMatchObject({ path: '.tool/auth.json', mode: 0o600 });
    expect(textOf(file!)).toBe('{"token":"hush"}');
    await expect(openSealed(await seal(other.recipient), mine.identity)).rejects.toThrow();
  });

  it('refuse content of another form', () => {
    for (const text of ['x', '1', '{}', '{"files":{}}', '{"files":[{"path":1}]}'])
      expect(() => filesOf(text)).toThrow();
  });

  it('know that bytes are not always text', () => {
    expect(textOf({ path: 'a', mode: 0, bytes: Uint8Array.of(0xff, 0xfe) })).toBeNull();
  });
});
