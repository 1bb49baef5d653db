package merge

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sluicegate/sluice/internal/policy"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// versionSize is 96 bits: short in requests that list versions, and never the same by chance.
const versionSize = 12

func encode(m proto.Message) []byte {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("marshal %T: %v", m, err)) // strings in Inputs were read from valid messages
	}
	return body
}

func shortHash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:versionSize])
}

func contentVersion(body []byte) string {
	sum := sha256.Sum256(body)
	return base64.RawURLEncoding.EncodeToString(sum[:versionSize])
}

// secretVersion is keyed, since versions show in status output and a short credential could be guessed from a plain
// hash, and covers the name, so that two secrets do not show that they are equal.
func secretVersion(key []byte, name string, body []byte) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(name))
	h.Write([]byte{0})
	h.Write(body)
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:versionSize])
}

// References of a resource to what is served only because something refers to it.
func secretRef(name string) string { return "secret " + name }
func jwksRef(from string) string   { return "jwks " + from } // see policy.JwksSource
func chainRef(name string) string  { return "chain " + name }

// serve makes a message fit for the wire in place: every credential becomes the full name of a Secret resource, a file or
// a variable of the proxy, and no key set is left to be guessed. It returns what the message refers to.
func serve(m proto.Message, tenant string) (refs []string, err error) {
	err = walk(m.ProtoReflect(), func(m proto.Message) error {
		switch m := m.(type) {
		case *policyv1.Credential:
			ref, err := serveCredential(m, tenant)
			if ref != "" {
				refs = append(refs, secretRef(ref))
			}
			return err
		case *policyv1.McpAuthentication: // comes before the key sets in it
			for _, p := range m.GetProviders() {
				p.Jwks = policy.ProviderJwks(p)
			}
		case *policyv1.Jwks:
			if from := policy.JwksSource(m); from != "" {
				refs = append(refs, jwksRef(from))
			}
		}
		return nil
	})
	return refs, err
}

func serveCredential(c *policyv1.Credential, tenant string) (secret string, err error) {
	switch s := c.GetSource().(type) {
	case *policyv1.Credential_Secret:
		secret = tenant + "/secret/" + s.Secret
	case *policyv1.Credential_Sealed:
		secret = tenant + "/sealed/" + s.Sealed
	case *policyv1.Credential_File, *policyv1.Credential_Env:
		return "", nil
	case *policyv1.Credential_Value:
		return "", errors.New("holds a plain credential, which is never sent: seal it before it is derived")
	default:
		return "", errors.New("holds a credential without a source")
	}
	c.Source = &policyv1.Credential_Secret{Secret: secret}
	return secret, nil
}

// walk calls visit for m and every message of this project in it.
func walk(m protoreflect.Message, visit func(proto.Message) error) (err error) {
	if err := visit(m.Interface()); err != nil {
		return err
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.IsMap() || fd.Message() == nil || !strings.HasPrefix(string(fd.Message().FullName()), "sluice.") {
			return true
		}
		if !fd.IsList() {
			err = walk(v.Message(), visit)
			return err == nil
		}
		for i := range v.List().Len() {
			if err = walk(v.List().Get(i).Message(), visit); err != nil {
				return false
			}
		}
		return true
	})
	return err
}

// serveObject makes the resource of a Listener, Backend or Target; name is the object's.
func serveObject(tenant, name string, spec any) (*xdsv1.Config, error) {
	switch spec := spec.(type) {
	case *adminv1.Object_Listener:
		return &xdsv1.Config{Resource: &xdsv1.Config_Listener{Listener: serveListener(spec.Listener)}}, nil
	case *adminv1.Object_Backend:
		return &xdsv1.Config{Resource: &xdsv1.Config_Backend{Backend: serveBackend(spec.Backend)}}, nil
	case *adminv1.Object_Target:
		t, err := serveTarget(tenant, name[strings.LastIndexByte(name, '/')+1:], spec.Target)
		return &xdsv1.Config{Resource: &xdsv1.Config_Target{Target: t}}, err
	}
	return nil, fmt.Errorf("no resource is made from %T", spec)
}

func serveListener(l *adminv1.Listener) *xdsv1.Listener {
	out := &xdsv1.Listener{Port: l.GetPort(), Hostnames: l.GetHostnames()}
	if t := l.GetTls(); t != nil {
		t = proto.CloneOf(t) // its credentials will be rewritten
		out.Tls = &xdsv1.ListenerTls{Cert: t.Cert, Key: t.Key, Root: t.Root, MinVersion: t.MinVersion}
	}
	return out
}

func serveRoute(tenant string, r *adminv1.Route, effectivePolicy string) *xdsv1.Route {
	out := &xdsv1.Route{
		Listener:        tenant + "/listener/" + r.GetListener(),
		Hostnames:       r.GetHostnames(),
		EffectivePolicy: effectivePolicy,
		SsePath:         ssePath(r.GetSsePath()),
	}
	for _, m := range r.GetMatches() {
		match := &xdsv1.RouteMatch{}
		switch p := m.GetPath().GetPath().(type) {
		case *adminv1.PathMatch_Exact:
			match.Path = &xdsv1.RouteMatch_Exact{Exact: p.Exact}
		case *adminv1.PathMatch_PathPrefix:
			match.Path = &xdsv1.RouteMatch_PathPrefix{PathPrefix: p.PathPrefix}
		case *adminv1.PathMatch_Regex:
			match.Path = &xdsv1.RouteMatch_Regex{Regex: p.Regex}
		}
		for _, h := range m.GetHeaders() {
			header := &xdsv1.HeaderMatch{Name: h.GetName()}
			switch v := h.GetValue().GetValue().(type) {
			case *adminv1.HeaderValueMatch_Exact:
				header.Value = &xdsv1.HeaderMatch_Exact{Exact: v.Exact}
			case *adminv1.HeaderValueMatch_Regex:
				header.Value = &xdsv1.HeaderMatch_Regex{Regex: v.Regex}
			}
			match.Headers = append(match.Headers, header)
		}
		out.Matches = append(out.Matches, match)
	}
	for _, b := range r.GetBackends() {
		out.Backends = append(out.Backends, &xdsv1.WeightedBackend{Backend: tenant + "/backend/" + b.GetBackend(), Weight: b.GetWeight()})
	}
	return out
}

// ssePath is where clients of HTTP+SSE come to.
func ssePath(written string) string {
	switch written {
	case "":
		return "/sse"
	case "off":
		return ""
	}
	return written
}

func serveBackend(b *adminv1.Backend) *xdsv1.Backend {
	return &xdsv1.Backend{ // the two enums are one vocabulary; a test holds them equal
		PrefixMode:  xdsv1.Backend_PrefixMode(b.GetPrefixMode()),
		FailureMode: xdsv1.Backend_FailureMode(b.GetFailureMode()),
		Description: b.GetDescription(),
	}
}

func serveTarget(tenant, name string, t *adminv1.Target) (*xdsv1.Target, error) {
	out := &xdsv1.Target{
		Backend:          tenant + "/backend/" + t.GetBackend(),
		Index:            t.GetIndex(),
		Name:             name,
		Description:      t.GetDescription(),
		ListCache:        t.GetListCache(),
		Reinitialize:     t.GetReinitialize(),
		Timeout:          t.GetTimeout(),
		ProtocolVersions: t.GetProtocolVersions(),
	}
	if c := t.GetConcurrency(); c != nil {
		out.Concurrency = &xdsv1.Concurrency{Max: c.GetMax(), Wait: c.GetWait()}
	}
	if s := t.GetSessionScope(); s != nil {
		out.SessionScope = &xdsv1.SessionScope{Share: xdsv1.SessionScope_Share(s.GetShare()), Header: s.GetHeader()}
	}
	for _, h := range t.GetForwardHeaders() {
		out.ForwardHeaders = append(out.ForwardHeaders, strings.ToLower(h))
	}
	switch tr := t.GetTransport().(type) {
	case *adminv1.Target_Mcp:
		endpoint, err := serveEndpoint(tr.Mcp, "/mcp")
		if err != nil {
			return nil, fmt.Errorf("mcp: %w", err)
		}
		out.Transport = &xdsv1.Target_Mcp{Mcp: endpoint}
	case *adminv1.Target_Sse:
		endpoint, err := serveEndpoint(tr.Sse, "/sse")
		if err != nil {
			return nil, fmt.Errorf("sse: %w", err)
		}
		out.Transport = &xdsv1.Target_Sse{Sse: endpoint}
	case *adminv1.Target_A2A:
		endpoint, err := serveEndpoint(tr.A2A, "/")
		if err != nil {
			return nil, fmt.Errorf("a2a: %w", err)
		}
		out.Transport = &xdsv1.Target_A2A{A2A: endpoint}
	case *adminv1.Target_Stdio:
		s := tr.Stdio
		out.Transport = &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: s.GetCmd(), Args: s.GetArgs(), Env: s.GetEnv(),
			ClearEnv: s.GetClearEnv(), Cwd: s.GetCwd(), Shared: s.GetShared(), MaxProcesses: s.GetMaxProcesses(), Idle: s.GetIdle()}}
	default:
		return nil, errors.New("has no transport: set one of mcp, sse, stdio and a2a")
	}
	return out, nil
}

// serveEndpoint completes an endpoint, which clients of the API may give as a URL in host, as people do in YAML.
func serveEndpoint(h *adminv1.HttpTransport, defaultPath string) (*xdsv1.HttpTransport, error) {
	out := &xdsv1.HttpTransport{Tls: h.GetTls(), Host: h.GetHost(), Port: h.GetPort(), Path: h.GetPath()}
	if strings.Contains(out.Host, "://") {
		u, err := url.Parse(out.Host)
		switch { // an error must not show what may be a password
		case err != nil:
			return nil, errors.New("host is no URL")
		case u.User != nil:
			return nil, fmt.Errorf("host %q holds a user: use backendAuth", u.Redacted())
		case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
			return nil, fmt.Errorf("host %q is no http or https URL", h.GetHost())
		}
		out.Tls, out.Host = u.Scheme == "https", u.Hostname()
		if p := u.Port(); p != "" && out.Port == 0 {
			n, err := strconv.ParseUint(p, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("port of host %q: %w", h.GetHost(), err)
			}
			out.Port = uint32(n)
		}
		if out.Path == "" {
			if u.Path != "" || u.RawQuery != "" {
				out.Path = u.RequestURI()
			}
		}
	} else if host, port, err := net.SplitHostPort(out.Host); err == nil && out.Port == 0 {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("port of host %q: %w", h.GetHost(), err)
		}
		out.Host, out.Port = host, uint32(n)
	}
	out.Host = strings.TrimSuffix(strings.TrimPrefix(out.Host, "["), "]")
	if out.Host == "" {
		return nil, errors.New("host is missing")
	}
	if out.Port == 0 {
		out.Port = 80
		if out.Tls {
			out.Port = 443
		}
	}
	switch {
	case out.Path == "":
		out.Path = defaultPath
	case out.Path[0] == '?':
		out.Path = "/" + out.Path
	case out.Path[0] != '/':
		out.Path = "/" + out.Path
	}
	return out, nil
}
