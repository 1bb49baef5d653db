package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/mtls"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	fleetv1 "github.com/sluicegate/sluice/proto/gen/sluice/fleet/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

const (
	reportInterval = 10 * time.Second
	maxReportItems = 10_000 // of one kind in one report
)

// Join trades a join token for a certificate. It is the one call that anybody may make.
func (f fleet) Join(ctx context.Context, r *fleetv1.JoinRequest) (*fleetv1.CertificateResponse, error) {
	token, err := mtls.ParseJoinToken(r.GetToken())
	if err != nil {
		return nil, invalidArgument("%v", err)
	}
	// A request that cannot be signed must not cost a use of the token.
	if err := checkCSR(r.GetCsr()); err != nil {
		return nil, invalidArgument("%v", err)
	}
	wish := r.GetName()
	if wish == "" {
		wish = "proxy"
	}
	p, err := f.Registry.Join(ctx, token, wish, mtls.DefaultTTL)
	if errors.Is(err, tenant.ErrJoin) {
		f.Log.WarnContext(ctx, "proxy join", "verdict", "deny", "token", token.ID(), "peer", peerAddress(ctx), "err", err)
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if err != nil {
		return nil, err
	}
	response, err := f.sign(r.GetCsr(), mtls.ID{Group: p.Group, Proxy: p.ID})
	if err != nil {
		return nil, invalidArgument("%v", err)
	}
	f.Log.InfoContext(ctx, "proxy join", "verdict", "allow", "token", token.ID(), "group", p.Group, "proxy", p.ID, "peer", peerAddress(ctx))
	return response, nil
}

func checkCSR(der []byte) error {
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return fmt.Errorf("certificate request: %w", err)
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return errors.New("certificate request: the key must be ECDSA P-256")
	}
	return nil
}

func peerAddress(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
			return host
		}
	}
	return ""
}

func (s *Server) sign(csr []byte, id mtls.ID) (*fleetv1.CertificateResponse, error) {
	certs, err := s.CA.Sign(mtls.Request{CSR: csr, ID: id})
	if err != nil {
		return nil, err
	}
	id.TrustDomain = s.CA.TrustDomain()
	return &fleetv1.CertificateResponse{Certificates: certs.Chain, Roots: certs.Roots, Identity: id.String()}, nil
}

// Renew gives a proxy a new certificate under the name that it has.
func (f fleet) Renew(ctx context.Context, r *fleetv1.RenewRequest) (*fleetv1.CertificateResponse, error) {
	p := peerOf(ctx)
	response, err := f.sign(r.GetCsr(), mtls.ID{Group: p.ID.Group, Proxy: p.ID.Proxy})
	if err != nil {
		return nil, invalidArgument("%v", err)
	}
	if err := f.Registry.Renewed(ctx, p.ID.Proxy, f.Now().Add(mtls.DefaultTTL)); err != nil {
		return nil, err
	}
	f.Log.InfoContext(ctx, "certificate renewed", "group", p.ID.Group, "proxy", p.ID.Proxy, "expired", p.Expired)
	return response, nil
}

// Report takes in what a proxy serves. What it says of tenants that its group does not serve is dropped.
func (f fleet) Report(ctx context.Context, r *fleetv1.ReportRequest) (*fleetv1.ReportResponse, error) {
	if len(r.GetTargets()) > maxReportItems || len(r.GetUnits()) > maxReportItems || len(r.GetTenants()) > maxReportItems {
		return nil, invalidArgument("a report holds at most %d targets, units and tenants", maxReportItems)
	}
	p := peerOf(ctx)
	served := set(f.Publisher.Groups()[p.ID.Group])
	ours := func(resource string) bool { return served[tenantOf(resource)] }
	r.Tenants = slices.DeleteFunc(r.GetTenants(), func(t *fleetv1.TenantReport) bool { return !served[t.GetTenant()] })
	r.Targets = slices.DeleteFunc(r.GetTargets(), func(t *fleetv1.TargetReport) bool { return !ours(t.GetTarget()) })
	r.Units = slices.DeleteFunc(r.GetUnits(), func(u *fleetv1.UnitReport) bool { return !ours(u.GetName()) })
	r.PeersAddr = reachable(r.GetPeersAddr(), peerAddress(ctx))
	f.reports.put(p.ID.Proxy, r, f.Now())
	response := &fleetv1.ReportResponse{Interval: durationpb.New(reportInterval)}
	if r.GetPeersAddr() != "" {
		response.Peers, response.PeersVersion = f.peers(p.ID)
		if response.PeersVersion == r.GetPeersVersion() {
			response.Peers = nil
		}
	}
	return response, nil
}

// reachable is an address that a proxy gave, with the host that it came from where it listens on all of its own.
func reachable(address, from string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = from
	}
	if host == "" {
		return ""
	}
	return net.JoinHostPort(host, port)
}

// peers are the other proxies of a proxy's group that can be reached, and what tells one list from another.
func (f fleet) peers(of mtls.ID) ([]*fleetv1.Peer, string) {
	var all []*fleetv1.Peer
	for _, p := range f.Registry.Proxies() { // by name
		if p.Group != of.Group || p.ID == of.Proxy || p.Revoked {
			continue
		}
		if r := f.reports.of(p.ID); r != nil && r.report.GetPeersAddr() != "" {
			all = append(all, &fleetv1.Peer{Proxy: p.ID, Address: r.report.GetPeersAddr()})
		}
	}
	return all, versionOf(all)
}

// versionOf tells lists of peers apart, whatever their addresses say: proxies make those up.
func versionOf(all []*fleetv1.Peer) string {
	h := sha256.New()
	for _, p := range all {
		fmt.Fprintf(h, "%q %q\n", p.GetProxy(), p.GetAddress())
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:9])
}

// tenantOf is the tenant that a resource's name begins with.
func tenantOf(resource string) string {
	name, _, _ := strings.Cut(resource, "/")
	return name
}

func refusalOf(resource string) *xdsv1.Refusal {
	return &xdsv1.Refusal{Type: "type.googleapis.com/sluice.xds.v1.Config", Name: resource}
}

// reports holds what proxies last said. It is soft state: a restart forgets it, and proxies say it again.
type reports struct {
	mu   sync.Mutex // guards last
	last map[string]*report
}

type report struct {
	report *fleetv1.ReportRequest
	at     time.Time
}

func newReports() *reports { return &reports{last: map[string]*report{}} }

func (r *reports) put(proxy string, said *fleetv1.ReportRequest, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, old := range r.last { // of proxies that are gone for good
		if now.Sub(old.at) > mtls.DefaultTTL {
			delete(r.last, id)
		}
	}
	r.last[proxy] = &report{report: said, at: now}
}

func (r *reports) of(proxy string) *report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last[proxy]
}

func (r *reports) forget(proxy string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, proxy)
}

// stale tells whether the proxy serves a tenant, or with an empty name any, from its disk.
func (r *report) stale(name string) bool {
	return slices.ContainsFunc(r.report.GetTenants(), func(t *fleetv1.TenantReport) bool {
		return t.GetStale() && (name == "" || t.GetTenant() == name)
	})
}

// revision is that of the tenant which the proxy served when it reported.
func (r *report) revision(name string) int64 {
	for _, t := range r.report.GetTenants() {
		if t.GetTenant() == name {
			return t.GetRevision()
		}
	}
	return 0
}

// found is what a tenant's targets speak, by name. Where proxies differ, as they may while a server is being replaced, it is all
// of it.
func (r *reports) found(tenant string) (all []*adminv1.FoundTarget) {
	versions := map[string][]string{}
	r.mu.Lock()
	for _, last := range r.last {
		for _, t := range last.report.GetTargets() {
			if name, ok := strings.CutPrefix(t.GetTarget(), tenant+"/target/"); ok && len(t.GetProtocolVersions()) > 0 {
				versions[name] = append(versions[name], t.GetProtocolVersions()...)
			}
		}
	}
	r.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		found := versions[name]
		slices.Sort(found)
		slices.Reverse(found)
		all = append(all, &adminv1.FoundTarget{Name: name, ProtocolVersions: slices.Compact(found)})
	}
	return all
}

// each calls tell for all that is bad in a tenant, by resource. What those that serve the revision said of their units
// before they took it is no longer so: all of it built.
func (r *reports) each(name string, revision int64, serving []string, tell func(proxy, resource, state, reason string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for proxy, last := range r.last {
		for _, t := range last.report.GetTargets() {
			if !t.GetHealthy() && tenantOf(t.GetTarget()) == name {
				tell(proxy, t.GetTarget(), "Degraded", t.GetError())
			}
		}
		outdated := last.revision(name) < revision && slices.Contains(serving, proxy)
		for _, u := range last.report.GetUnits() {
			if outdated || tenantOf(u.GetName()) != name {
				continue
			}
			state := "Degraded" // an older form serves
			if u.GetUnserved() {
				state = "Refused"
			}
			tell(proxy, u.GetName(), state, u.GetReason())
		}
	}
}
