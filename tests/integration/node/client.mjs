// An OAuth client that nobody here wrote (oauth4webapi, certified by the OpenID Foundation) through every grant.
// Told by its argument, a JSON object, where the issuer is and who may come in; plays the browser itself.
import * as oauth from 'oauth4webapi'

const given = JSON.parse(process.argv[2])
const http = { [oauth.allowInsecureRequests]: true }
const issuer = new URL(given.issuer)
const server = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, http))
const done = {}

// Authorization code with PKCE, state, nonce, and the check of `iss`.
const client = { client_id: given.app.client_id }
const authenticate = given.app.client_secret ? oauth.ClientSecretBasic(given.app.client_secret) : oauth.None()
const verifier = oauth.generateRandomCodeVerifier()
const [state, nonce] = [oauth.generateRandomState(), oauth.generateRandomNonce()]
const address = new URL(server.authorization_endpoint)
for (const [name, value] of Object.entries({
  response_type: 'code', client_id: client.client_id, redirect_uri: given.redirect_uri, state, nonce,
  scope: 'openid profile ledger:read', code_challenge_method: 'S256',
  code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
})) address.searchParams.set(name, value)

const cookies = new Map()
async function visit(url, body) {
  const headers = { cookie: [...cookies].map(([name, value]) => `${name}=${value}`).join('; ') }
  const answer = await fetch(url, { method: body ? 'POST' : 'GET', body, headers, redirect: 'manual' })
  for (const cookie of answer.headers.getSetCookie()) cookies.set(...cookie.split(';')[0].split(/=(.*)/s))
  return answer
}
async function submit(page, fields) {
  const html = await page.text()
  const text = (found) => found.replaceAll('&amp;', '&').replaceAll('&#x27;', "'").replaceAll('&quot;', '"')
  const action = new URL(text(html.match(/<form method="post" action="([^"]*)"/)[1]), issuer)
  const hidden = [...html.matchAll(/<input type="hidden" name="([^"]*)" value="([^"]*)"/g)].map((m) => [m[1], text(m[2])])
  return visit(action, new URLSearchParams([...hidden, ...Object.entries(fields)]))
}
const consent = await submit(await visit(address), { username: given.username, password: given.password })
const back = await submit(consent, { decision: 'allow' })
const parameters = oauth.validateAuthResponse(server, client, new URL(back.headers.get('location')), state)
const codeAnswer = await oauth.authorizationCodeGrantRequest(
  server, client, authenticate, parameters, given.redirect_uri, verifier, http)
const tokens = await oauth.processAuthorizationCodeResponse(
  server, client, codeAnswer, { expectedNonce: nonce, requireIdToken: true })
await oauth.validateApplicationLevelSignature(server, codeAnswer, http)
done.subject = oauth.getValidatedIdTokenClaims(tokens).sub

const about = await oauth.userInfoRequest(server, client, tokens.access_token, http)
done.userinfo = await oauth.processUserInfoResponse(server, client, done.subject, about)

const again = await oauth.processRefreshTokenResponse(server, client,
  await oauth.refreshTokenGrantRequest(server, client, authenticate, tokens.refresh_token, http))
done.refreshed = again.refresh_token !== tokens.refresh_token

// A resource server's view of the token, by RFC 9068.
const request = new Request(given.issuer, { headers: { authorization: `Bearer ${again.access_token}` } })
done.claims = await oauth.validateJwtAccessToken(server, request, given.audience, http)

await oauth.processRevocationResponse(
  await oauth.revocationRequest(server, client, authenticate, again.refresh_token, http))
try {
  await oauth.processRefreshTokenResponse(server, client,
    await oauth.refreshTokenGrantRequest(server, client, authenticate, again.refresh_token, http))
} catch (error) { done.revoked = error.error }

// Client credentials, and introspection by the system that got them.
const system = { client_id: given.system.client_id }
const secret = oauth.ClientSecretPost(given.system.client_secret)
const own = await oauth.processClientCredentialsResponse(server, system,
  await oauth.clientCredentialsGrantRequest(server, system, secret, new URLSearchParams(), http))
done.introspected = await oauth.processIntrospectionResponse(server, system,
  await oauth.introspectionRequest(server, system, secret, own.access_token, http))

console.log(JSON.stringify(done))
