package policy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// service is what a guard asks over HTTP: one POST of JSON, one answer of JSON.
type service struct {
	url     string
	token   Secret // empty: none
	timeout time.Duration
	open    bool
	client  *http.Client // nil: nobody can be asked here
}

// maxJudgement bounds an answer, beside what it may repeat of the request.
const maxJudgement = 64 << 10

type serviceConfig struct {
	url        string
	credential *policyv1.Credential
	timeout    *durationpb.Duration
	mode       policyv1.FailureMode
	tls        *policyv1.BackendTls
}

func compileService(cfg serviceConfig, r Resolver, field string, errs *problems) service {
	s := service{url: cfg.url, timeout: 5 * time.Second, open: cfg.mode == policyv1.FailureMode_FAILURE_MODE_FAIL_OPEN}
	u, err := url.Parse(cfg.url)
	switch {
	case cfg.url == "": // told by who knows what stands in its place
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Fragment != "":
		errs.add(field+".url", "%q is no http or https URL", cfg.url)
	case u.User != nil:
		errs.add(field+".url", "holds a password or name; write it as `credential`")
	case u.Scheme == "http" && cfg.tls != nil:
		errs.add(field+".tls", "does nothing for an http URL; write https://")
	}
	if cfg.timeout != nil {
		if s.timeout = cfg.timeout.AsDuration(); s.timeout <= 0 || s.timeout > 5*time.Minute {
			errs.add(field+".timeout", "%v is none to wait for; write more than 0 and at most 5m", s.timeout)
		}
	}
	if cfg.credential != nil {
		if s.token, err = r.credential(cfg.credential); err != nil && !errors.Is(err, ErrUnknown) {
			errs.add(field+".credential", "%v", err)
		}
		if strings.ContainsAny(s.token.Reveal(), "\r\n\x00") {
			errs.add(field+".credential", "holds what no header can carry")
		}
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.tls != nil {
		tlsConfig = compileTLS(cfg.tls, r, field+".tls", errs)
	}
	if r.Runtime != nil && len(errs.errs) == 0 {
		s.client = r.Runtime.services.get(serviceKey(cfg, r), func() *http.Client { return newServiceClient(r.Grants.DialContext, tlsConfig) })
	}
	return s
}

// serviceKey is all that a client's connections depend on.
func serviceKey(cfg serviceConfig, r Resolver) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q ", r.Tenant, r.Grants.Words())
	if cfg.tls != nil {
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(cfg.tls)
		fmt.Fprintf(h, "%q ", b)
		for _, c := range []*policyv1.Credential{cfg.tls.GetRoot(), cfg.tls.GetCert(), cfg.tls.GetKey()} {
			if c != nil {
				value, _ := r.credential(c) // files change
				fmt.Fprintf(h, "%q ", value.Reveal())
			}
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// newServiceClient follows no redirect, for what it sends is for one address, and asks no proxy of the environment, which would
// dial in its stead.
func newServiceClient(dial func(ctx context.Context, network, address string) (net.Conn, error), tlsConfig *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dial, TLSClientConfig: tlsConfig, TLSHandshakeTimeout: 10 * time.Second, DisableCompression: true,
			MaxIdleConnsPerHost: 32, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 64 << 10,
			ForceAttemptHTTP2: len(tlsConfig.NextProtos) == 0,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (s *service) failsOpen() bool { return s.open }

// ask posts what and reads an answer of at most limit bytes. Its errors name no URL, which may hold a key.
func (s *service) ask(ctx context.Context, headers http.Header, what any, limit int, answer any) error {
	if s.client == nil {
		return errors.New("nobody can be asked here")
	}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(what); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, &body)
	if err != nil {
		return errors.New("the URL cannot be asked")
	}
	for name, values := range headers {
		req.Header[name] = values
	}
	req.Header["Content-Type"] = []string{"application/json"}
	req.Header["Accept"] = []string{"application/json"}
	if !s.token.IsZero() {
		req.Header["Authorization"] = []string{"Bearer " + s.token.Reveal()}
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return s.failure(ctx, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	switch {
	case err != nil:
		return s.failure(ctx, err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the answer's status is %d", resp.StatusCode)
	case len(data) > limit:
		return fmt.Errorf("the answer has more than %d bytes", limit)
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return errors.New("the answer is no JSON of the form that it should have")
	}
	return nil
}

func (s *service) failure(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %v", s.timeout)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return err
}

// maxServices bounds how many sorts of connections are kept for guards: tenants times their TLS configurations.
const maxServices = 1024

// services are the clients of guards. They outlive the policies that use them, and so do their connections.
type services struct {
	mu    sync.Mutex
	by    map[[sha256.Size]byte]*http.Client // guarded by mu
	order [][sha256.Size]byte                // guarded by mu; oldest first
}

func (s *services) get(key [sha256.Size]byte, make func() *http.Client) *http.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.by[key]; ok {
		return c
	}
	if s.by == nil {
		s.by = map[[sha256.Size]byte]*http.Client{}
	}
	if len(s.order) >= maxServices { // who still uses it goes on, with connections of its own
		s.by[s.order[0]].CloseIdleConnections()
		delete(s.by, s.order[0])
		s.order = s.order[1:]
	}
	c := make()
	s.by[key], s.order = c, append(s.order, key)
	return c
}
