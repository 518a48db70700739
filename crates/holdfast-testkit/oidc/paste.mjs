// A tool that is signed in with a code that its person pastes: node -e TOOL ISSUER
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline/promises';

const issuer = process.argv[1];
const verifier = randomBytes(32).toString('base64url');
const redirect_uri = `${issuer}/paste`;
const link = `${issuer}/auth?${new URLSearchParams({
  client_id: 'paste',
  response_type: 'code',
  redirect_uri,
  scope: 'openid',
  state: randomBytes(16).toString('base64url'),
  code_challenge: createHash('sha256').update(verifier).digest('base64url'),
  code_challenge_method: 'S256',
})}`;
console.log(`Sign in here:\n\n${link}\n`);
const lines = createInterface({ input: process.stdin, output: process.stdout });
const code = (await lines.question('Paste code here: ')).trim();
const answer = await fetch(`${issuer}/token`, {
  method: 'POST',
  body: new URLSearchParams({
    grant_type: 'authorization_code',
    client_id: 'paste',
    code,
    redirect_uri,
    code_verifier: verifier,
  }),
});
const token = await answer.json();
if (!token.access_token) {
  console.log(`no token: ${JSON.stringify(token)}`);
  process.exit(1);
}
mkdirSync(`${process.env.HOME}/.tool`, { recursive: true });
writeFileSync(`${process.env.HOME}/.tool/auth.json`, JSON.stringify(token), { mode: 0o600 });
console.log(`Signed in with ${code}: ${token.access_token}`);
process.exit(0);
