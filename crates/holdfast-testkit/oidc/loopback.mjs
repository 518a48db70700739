// A tool that is signed in through a redirect to a port of its own: node -e TOOL ISSUER
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';

const issuer = process.argv[1];
const verifier = randomBytes(32).toString('base64url');
const state = randomBytes(16).toString('base64url');
const server = createServer(async (request, response) => {
  const query = new URL(request.url, 'http://127.0.0.1').searchParams;
  if (!request.url.startsWith('/callback') || query.get('state') !== state) {
    response.writeHead(404).end();
    return;
  }
  if (query.has('error')) {
    response.end('refused');
    console.log(`sign-in failed: ${query.get('error')}`);
    process.exit(1);
  }
  const answer = await fetch(`${issuer}/token`, {
    method: 'POST',
    body: new URLSearchParams({
      grant_type: 'authorization_code',
      client_id: 'loopback',
      code: query.get('code'),
      redirect_uri,
      code_verifier: verifier,
    }),
  });
  const token = await answer.json();
  response.end('You can close this page.');
  if (!token.access_token) {
    console.log(`no token: ${JSON.stringify(token)}`);
    process.exit(1);
  }
  // Some tools print what they were given, before it is in a file and after.
  console.log(`Your token: ${token.access_token}`);
  mkdirSync(`${process.env.HOME}/.tool`, { recursive: true });
  writeFileSync(`${process.env.HOME}/.tool/auth.json`, JSON.stringify(token), { mode: 0o600 });
  console.log(`Signed in: ${JSON.stringify(token)}`);
  process.exit(0);
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const redirect_uri = `http://127.0.0.1:${server.address().port}/callback`;
const link = `${issuer}/auth?${new URLSearchParams({
  client_id: 'loopback',
  response_type: 'code',
  redirect_uri,
  scope: 'openid',
  state,
  code_challenge: createHash('sha256').update(verifier).digest('base64url'),
  code_challenge_method: 'S256',
})}`;
console.log(`Open ${link}`);
spawn(process.env.BROWSER, [link], { stdio: 'ignore' });
