package rehearsal

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// What stands for a credential that is not known here, or must not be shown.
const (
	inlineCredential = "<credential>"
	callersToken     = "<callers-token>"
)

// password of every user of basicAuth, for as long as the process lives.
const password = "rehearsal"

// standIns are what is not here in a rehearsal, and what stands for it: an issuer whose tokens all providers accept, keys and
// passwords that the verifiers know, and names instead of credentials, so that none is needed and none can be shown.
type standIns struct {
	signer jose.Signer
	jwks   string
	user   string            // who calls by basicAuth; empty: nobody
	keys   map[string]string // keyHash → API key
	object string            // that is being replaced
	notes  []string
}

func newStandIns(user string) (*standIns, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	jwk := jose.JSONWebKey{Key: key, KeyID: "rehearsal", Algorithm: string(jose.ES256), Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jwk}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, err
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{jwk.Public()}})
	if err != nil {
		return nil, err
	}
	return &standIns{signer: signer, jwks: string(set), user: user, keys: map[string]string{}}, nil
}

// replace returns an object with stand-ins.
func (s *standIns) replace(o *adminv1.Object) (*adminv1.Object, error) {
	clone := proto.CloneOf(o)
	s.object = resource.Key(o)
	if l := clone.GetListener(); l != nil {
		l.Tls = nil // the caller's connection says whether there is TLS
	}
	return clone, s.message(clone.ProtoReflect(), "")
}

// message replaces what is in m, which stands at a place in an object, e.g. `target.policies`.
func (s *standIns) message(m protoreflect.Message, at string) error {
	switch v := m.Interface().(type) {
	case *policyv1.Credential:
		v.Source = &policyv1.Credential_Value{Value: nameOf(v)}
		return nil
	case *policyv1.BackendTls:
		v.Root, v.Cert, v.Key = nil, nil, nil // nobody shakes hands
		return nil
	case *policyv1.JwtProvider:
		v.Jwks = &policyv1.Jwks{Source: &policyv1.Jwks_Inline{Inline: s.jwks}}
		return nil
	case *policyv1.ApiKeyAuth:
		s.apiKeys(v)
		return nil
	case *policyv1.BasicAuth:
		return s.basic(v)
	case *policyv1.BackendAuth:
		if backendAuth(v) {
			return nil
		}
	case *policyv1.Guard:
		s.guard(v, at)
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.Message() == nil || fd.IsMap() && fd.MapValue().Message() == nil {
			return true
		}
		here := strings.TrimPrefix(at+"."+fd.JSONName(), ".")
		switch {
		case fd.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				err = s.message(v.Message(), here)
				return err == nil
			})
		case fd.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = s.message(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", here, i))
			}
		default:
			err = s.message(v.Message(), here)
		}
		return err == nil
	})
	return err
}

// nameOf tells which credential it is. It holds no blank, so that it fits wherever a credential does.
func nameOf(c *policyv1.Credential) string {
	fit := strings.NewReplacer(" ", "_", "\t", "_", "\n", "_")
	switch source := c.GetSource().(type) {
	case *policyv1.Credential_Secret:
		return "<secret:" + fit.Replace(source.Secret) + ">"
	case *policyv1.Credential_File:
		return "<file:" + fit.Replace(source.File) + ">"
	case *policyv1.Credential_Env:
		return "<env:" + fit.Replace(source.Env) + ">"
	}
	return inlineCredential
}

// apiKeys gives each key a value that is known here.
func (s *standIns) apiKeys(a *policyv1.ApiKeyAuth) {
	for _, k := range a.GetKeys() {
		value := fmt.Sprintf("rehearsal-key-%d", len(s.keys)+1)
		k.Key, k.KeyHash = nil, fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(value)))
		s.keys[k.KeyHash] = value
	}
}

// basic gives the caller's user a password that is known here, unless it is known that there is no such user.
func (s *standIns) basic(b *policyv1.BasicAuth) error {
	users := s.user != ""
	if inline := b.GetHtpasswd().GetValue(); inline != "" {
		users = false
		for line := range strings.Lines(inline) {
			name, _, _ := strings.Cut(strings.TrimSpace(line), ":")
			users = users || name == s.user
		}
	}
	user := s.user
	if user == "" || !users {
		user = "nobody-that-calls"
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		return err
	}
	b.Htpasswd = &policyv1.Credential{Source: &policyv1.Credential_Value{Value: user + ":" + string(hash)}}
	return nil
}

// backendAuth sends, instead of what a token endpoint or a signature would give, what it is. It returns false for a method that
// sends what it is given.
func backendAuth(a *policyv1.BackendAuth) bool {
	var location *policyv1.Location
	name := ""
	switch m := a.GetMethod().(type) {
	case *policyv1.BackendAuth_Oauth:
		name, location = "<oauth-token>", m.Oauth.GetLocation()
	case *policyv1.BackendAuth_Gcp:
		name, location = "<gcp-token>", m.Gcp.GetLocation()
	case *policyv1.BackendAuth_Azure:
		name, location = "<azure-token>", m.Azure.GetLocation()
	case *policyv1.BackendAuth_Aws:
		name, location = "<aws-signature>", &policyv1.Location{Place: &policyv1.Location_Header{Header: &policyv1.HeaderLocation{Name: "Authorization"}}}
	case *policyv1.BackendAuth_Basic:
		name = m.Basic.GetUsername() + ":" + nameOf(m.Basic.GetPassword())
		location = &policyv1.Location{Place: &policyv1.Location_Header{Header: &policyv1.HeaderLocation{Name: "Authorization", Prefix: "Basic "}}}
	case *policyv1.BackendAuth_TokenExchange: // only who shows a token has one to exchange
		a.Method = &policyv1.BackendAuth_Passthrough{Passthrough: &policyv1.PassthroughAuth{Location: m.TokenExchange.GetLocation()}}
		return true
	default:
		return false
	}
	a.Method = &policyv1.BackendAuth_Key{Key: &policyv1.KeyAuth{Credentials: []*policyv1.LocatedCredential{{
		Credential: &policyv1.Credential{Source: &policyv1.Credential_Value{Value: name}}, Location: location,
	}}}}
	return true
}

// guard asks nobody: a guard that would find nothing stands for one that would let everything pass.
func (s *standIns) guard(g *policyv1.Guard, at string) {
	what := ""
	switch {
	case g.GetWebhook() != nil:
		what = g.GetWebhook().GetUrl()
	case g.GetOpenAiModeration() != nil:
		what = "a moderation endpoint"
	default:
		return
	}
	_, field, _ := strings.Cut(at, ".") // without the kind of the object
	s.notes = append(s.notes, fmt.Sprintf("%s of %s would ask %s, and nobody is asked here: it lets everything pass", field, s.object, what))
	g.Guard = &policyv1.Guard_Regex{Regex: &policyv1.RegexGuard{Rules: []*policyv1.RegexRule{{Rule: &policyv1.RegexRule_Pattern{Pattern: `[^\x00-\x{10FFFF}]`}}}}}
}
