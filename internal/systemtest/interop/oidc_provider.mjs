// A certified OAuth server (oidc-provider) with one client for each way to authenticate, for the client credentials grant.
// Tokens are JWTs for the resource that is asked for (RFC 8707). Usage: node oidc_provider.mjs PORT KEYFILE; the private
// key of the client `jwt` is written to KEYFILE as a JWK.
import { writeFileSync } from 'node:fs';
import { generateKeyPairSync } from 'node:crypto';
import Provider from 'oidc-provider';

const [port, keyFile] = process.argv.slice(2);
const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
writeFileSync(keyFile, JSON.stringify({ ...privateKey.export({ format: 'jwk' }), kid: 'k1', alg: 'ES256' }));

const client = (id, method, more) => ({
  client_id: id, token_endpoint_auth_method: method, grant_types: ['client_credentials'], redirect_uris: [], response_types: [], ...more,
});
const secret = 'a client secret & more: 0123456789';
const provider = new Provider(`http://localhost:${port}`, {
  clients: [
    client('basic', 'client_secret_basic', { client_secret: secret }),
    client('post', 'client_secret_post', { client_secret: secret }),
    client('jwt', 'private_key_jwt', { jwks: { keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'k1', alg: 'ES256', use: 'sig' }] }, token_endpoint_auth_signing_alg: 'ES256' }),
  ],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_ctx, resource) => ({ scope: 'read write', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 600 }),
    },
  },
});
provider.listen(Number(port), '127.0.0.1', () => console.log('ready'));
