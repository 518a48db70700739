// An OpenID provider whose pages a browser in a guest can reach. It prints its port, then one line
// for every request: method, path without query, status; and `code CODE` when a page shows one.
// Each kind of page has a colour of its own, by which a viewer of the desktop knows it. An argument
// puts its clock forward by so many seconds.
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const ahead = Number(process.argv[2] ?? 0) * 1000;
const now = Date.now;
Date.now = () => now() + ahead;

const server = createServer();
await new Promise((done) => server.listen(0, '0.0.0.0', done));
const { port } = server.address();
const issuer = `http://host.holdfast.internal:${port}`;
const device = 'urn:ietf:params:oauth:grant-type:device_code';

const client = (id, more) => ({
  client_id: id,
  token_endpoint_auth_method: 'none',
  grant_types: ['authorization_code'],
  response_types: ['code'],
  ...more,
});

const provider = new Provider(issuer, {
  clients: [
    client('loopback', { application_type: 'native', redirect_uris: ['http://127.0.0.1/callback'] }),
    client('paste', { redirect_uris: [`${issuer}/paste`] }),
    client('device', { grant_types: [device], response_types: [], redirect_uris: [] }),
  ],
  features: { deviceFlow: { enabled: true }, devInteractions: { enabled: true } },
  cookies: { keys: ['of a test that ends soon'] },
  ttl: { AccessToken: 600, DeviceCode: 600, AuthorizationCode: 60, Interaction: 600, Session: 600, Grant: 600 },
});

const COLOURS = [
  ['name="login"', '#2a9d8f'],
  ['value="consent"', '#e9a03b'],
  ['deviceConfirmForm', '#5b5bd6'],
  ['name="user_code"', '#b23a8e'],
  ['id="code"', '#3a7d44'],
];

provider.use(async (ctx, next) => {
  await next();
  const colour = COLOURS.find(([mark]) => typeof ctx.body === 'string' && ctx.body.includes(mark));
  if (colour) {
    ctx.body = ctx.body
      // A font of elsewhere would hold the page back where there is no elsewhere.
      .replace(/@import url\([^)]*\);/, '')
      // Only once it is complete and has put the focus where it is needed: then it can be typed into.
      .replace(
        '</title>',
        `</title><style>.ready, .ready body { background: ${colour[1]} !important }</style>
        <script>addEventListener('load', () => document.documentElement.classList.add('ready'))</script>`,
      );
  }
  console.log(`${ctx.method} ${ctx.path} ${ctx.status}`);
});
// Where the flow with a pasted code ends: a page that shows it.
provider.use(async (ctx, next) => {
  if (ctx.path !== '/paste') return next();
  console.log(`code ${ctx.query.code}`);
  ctx.type = 'html';
  ctx.body = `<title>Code</title><p id="code">${encodeURIComponent(ctx.query.code ?? '')}</p>`;
});

server.on('request', provider.callback());
console.log(`port ${port}`);
process.stdin.on('end', () => process.exit(0)).resume();
