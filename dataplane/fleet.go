package dataplane

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/mtls"
	fleetv1 "github.com/sluicegate/sluice/proto/gen/sluice/fleet/v1"
)

const (
	identityFile   = "identity.pem"
	reportInterval = 10 * time.Second
	callTimeout    = 15 * time.Second
	maxReportItems = 5000 // what a control plane takes at least
)

// openIdentity loads the identity of the data directory, or joins. A token of another control plane than the identity's,
// or an identity too old to be renewed, means to join anew: who passes a token wants to be let in there.
func openIdentity(ctx context.Context, cfg Config) (*mtls.Identity, error) {
	path := filepath.Join(cfg.DataDir, identityFile)
	identity, err := mtls.LoadIdentity(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if cfg.JoinToken == "" {
			return nil, fmt.Errorf("%s holds no identity, and there is no join token: make one with `sluice token create --type join` and pass it with --join-token", cfg.DataDir)
		}
	case err != nil:
		return nil, err
	}
	if identity != nil && cfg.JoinToken == "" {
		return identity, nil
	}
	token, err := readToken(cfg.JoinToken)
	if err != nil {
		if identity != nil {
			return identity, nil // it is not needed any more, and its file may be gone
		}
		return nil, err
	}
	if identity != nil {
		switch {
		case !trusts(identity, token.Pin()):
			cfg.Log.Warn("the join token is of another control plane than the identity on disk: joining anew", "identity", identity.ID().String())
		case time.Since(identity.NotAfter()) > mtls.RenewGrace:
			cfg.Log.Warn("the certificate on disk is too old to be renewed: joining anew", "identity", identity.ID().String(), "expired", identity.NotAfter())
		default:
			return identity, nil
		}
	}
	return join(ctx, cfg, path, token)
}

// readToken takes a token or @FILE.
func readToken(text string) (mtls.JoinToken, error) {
	if path, ok := strings.CutPrefix(text, "@"); ok {
		data, err := os.ReadFile(path)
		if err != nil {
			return mtls.JoinToken{}, fmt.Errorf("join token: %w", err)
		}
		text = string(data)
	}
	return mtls.ParseJoinToken(text)
}

func trusts(i *mtls.Identity, pin [32]byte) bool {
	return slices.ContainsFunc(i.Roots(), func(der []byte) bool {
		c, err := x509.ParseCertificate(der)
		return err == nil && sha256.Sum256(c.RawSubjectPublicKeyInfo) == pin
	})
}

// join trades the token for an identity. It waits for a control plane that is not there yet, and gives up on one that
// says no or is not the token's.
func join(ctx context.Context, cfg Config, path string, token mtls.JoinToken) (*mtls.Identity, error) {
	config := token.ClientConfig()
	var pinned atomic.Pointer[error] // gRPC tells handshake errors as text alone
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		err := verify(state)
		if err != nil {
			pinned.Store(&err)
		}
		return err
	}
	issue := func(ctx context.Context, csr []byte) (mtls.Certificates, error) {
		conn, err := dial(cfg.XDSAddr, config)
		if err != nil {
			return mtls.Certificates{}, err
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		r, err := fleetv1.NewFleetClient(conn).Join(ctx, &fleetv1.JoinRequest{Token: token.Encode(), Csr: csr, Name: cfg.Name})
		if err != nil {
			return mtls.Certificates{}, err
		}
		return mtls.Certificates{Chain: r.GetCertificates(), Roots: r.GetRoots()}, nil
	}
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		identity, err := mtls.NewIdentity(ctx, path, issue)
		if err == nil {
			cfg.Log.Info("joined", "identity", identity.ID().String(), "expires", identity.NotAfter())
			return identity, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if refused := pinned.Load(); refused != nil {
			return nil, fmt.Errorf("join at %s: %w", cfg.XDSAddr, *refused)
		}
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Internal:
			cfg.Log.Warn("control plane not reached, joining later", "addr", cfg.XDSAddr, "err", err)
		default:
			return nil, fmt.Errorf("join at %s: %w", cfg.XDSAddr, err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait/2 + rand.N(wait/2)):
		}
	}
}

// renew dials for itself: the stream may have been refused because the certificate has expired.
func (p *process) renew(ctx context.Context, csr []byte) (mtls.Certificates, error) {
	conn, err := p.dial()
	if err != nil {
		return mtls.Certificates{}, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := fleetv1.NewFleetClient(conn).Renew(ctx, &fleetv1.RenewRequest{Csr: csr})
	if err != nil {
		return mtls.Certificates{}, err
	}
	p.cfg.Log.Info("certificate renewed", "identity", r.GetIdentity())
	return mtls.Certificates{Chain: r.GetCertificates(), Roots: r.GetRoots()}, nil
}

// report tells the control plane what is served: when that changes, and as often as it asks.
func (p *process) report(ctx context.Context) error {
	nudge(p.news) // the first report
	cancel := p.store.Subscribe(func(_, _ *snapshot.Index) { nudge(p.news) })
	defer cancel()
	interval, wait := reportInterval, reportInterval
	peersVersion := ""
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		case <-p.ask: // a peer is looked for that is not known
		case <-p.news:
			select { // what comes together is told together
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(200 * time.Millisecond):
			}
		}
		conn := p.client.Conn()
		if conn == nil {
			wait = time.Second // it is still to be told
			continue
		}
		wait = interval
		call, cancel := context.WithTimeout(ctx, callTimeout)
		said := p.status()
		said.PeersVersion = peersVersion
		r, err := fleetv1.NewFleetClient(conn).Report(call, said)
		cancel()
		if err != nil && ctx.Err() == nil {
			p.cfg.Log.Debug("report not taken", "err", err)
			continue
		}
		if p.peers != nil && (r.GetPeersVersion() != peersVersion || peersVersion == "") {
			peersVersion = r.GetPeersVersion()
			known := map[string]string{}
			for _, peer := range r.GetPeers() {
				known[peer.GetProxy()] = peer.GetAddress()
			}
			p.peers.Set(known)
		}
		if d := r.GetInterval().AsDuration(); d > 0 {
			interval = max(d, time.Second)
			wait = interval
		}
	}
}

// status is what Report says.
func (p *process) status() *fleetv1.ReportRequest {
	a := p.addresses()
	r := &fleetv1.ReportRequest{Version: p.cfg.Version, Started: timestamppb.New(p.started), Listeners: a.Listeners, Ops: a.Ops, PeersAddr: p.peersAddr()}
	index := p.store.Load()
	for t := range index.Tenants() {
		r.Tenants = append(r.Tenants, &fleetv1.TenantReport{Tenant: t.Name, Revision: t.Revision, Stale: t.Stale})
		for _, refusal := range t.Refusals() {
			reason := refusal.GetReason()
			if refusal.GetField() != "" {
				reason = refusal.GetField() + ": " + reason
			}
			r.Units = append(r.Units, &fleetv1.UnitReport{Name: refusal.GetName(), Reason: reason, Unserved: t.Unserved(refusal.GetName())})
		}
	}
	for _, h := range p.upstreams.Health() {
		r.Targets = append(r.Targets, &fleetv1.TargetReport{Target: h.Target, Healthy: h.Err == "", Error: h.Err, ProtocolVersions: h.Versions})
	}
	r.Targets = append(r.Targets, troubles(index)...)
	r.Tenants = r.Tenants[:min(len(r.Tenants), maxReportItems)]
	r.Units = r.Units[:min(len(r.Units), maxReportItems)]
	r.Targets = r.Targets[:min(len(r.Targets), maxReportItems)]
	return r
}

// troubles are targets whose guards could not decide when they were last asked, once for each reason: a target has other
// policies on each route.
func troubles(index *snapshot.Index) (all []*fleetv1.TargetReport) {
	told := map[[2]string]bool{}
	for tenant := range index.Tenants() {
		for _, route := range tenant.Routes() {
			for _, backend := range route.Backends {
				for _, t := range slices.Concat(backend.Targets, backend.Agents) {
					err := t.Policy.Trouble()
					if err == nil || told[[2]string{t.Resource, err.Error()}] {
						continue
					}
					told[[2]string{t.Resource, err.Error()}] = true
					all = append(all, &fleetv1.TargetReport{Target: t.Resource, Error: err.Error()})
				}
			}
		}
	}
	return all
}
