package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/mtls"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	fleetv1 "github.com/sluicegate/sluice/proto/gen/sluice/fleet/v1"
)

// scope says what a request's tenant field means.
type scope int

const (
	platformWide scope = iota // the call acts for no tenant; a field of that name is an argument
	oneTenant                 // the call acts for the tenant named, by default the token's own or `default`
	oneOrAll                  // as oneTenant, but a platform admin who names none means all
)

type rule struct {
	role  tenant.Role
	scope scope
}

// adminAccess is who may call what. A method that is not here is refused: deny by default.
var adminAccess = map[string]rule{
	adminv1.Admin_Apply_FullMethodName:       {tenant.TenantAdmin, oneTenant},
	adminv1.Admin_Diff_FullMethodName:        {tenant.TenantViewer, oneTenant},
	adminv1.Admin_Get_FullMethodName:         {tenant.TenantViewer, oneTenant},
	adminv1.Admin_List_FullMethodName:        {tenant.TenantViewer, oneTenant},
	adminv1.Admin_Delete_FullMethodName:      {tenant.TenantAdmin, oneTenant},
	adminv1.Admin_Log_FullMethodName:         {tenant.TenantViewer, oneTenant},
	adminv1.Admin_Rollback_FullMethodName:    {tenant.TenantAdmin, oneTenant},
	adminv1.Admin_Explain_FullMethodName:     {tenant.TenantViewer, oneTenant},
	adminv1.Admin_Status_FullMethodName:      {tenant.TenantViewer, oneTenant},
	adminv1.Admin_ListProxies_FullMethodName: {tenant.TenantViewer, oneOrAll},

	adminv1.Admin_CreateTenant_FullMethodName:      {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_AllowTenant_FullMethodName:       {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_ListTenants_FullMethodName:       {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_DeleteTenant_FullMethodName:      {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_PutGroup_FullMethodName:          {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_ListGroups_FullMethodName:        {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_DeleteGroup_FullMethodName:       {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_CreateToken_FullMethodName:       {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_ListTokens_FullMethodName:        {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_RevokeToken_FullMethodName:       {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_IssueCertificates_FullMethodName: {tenant.PlatformAdmin, platformWide},
	adminv1.Admin_RevokeProxy_FullMethodName:       {tenant.PlatformAdmin, platformWide},
}

// certificate is what a call on the xDS port must show.
type certificate int

const (
	certificateValid        certificate = iota + 1
	certificateMaybeExpired             // good but for its time, for as long as it may be renewed
	certificateNone
)

// fleetAccess is the same for proxies.
var fleetAccess = map[string]certificate{
	fleetv1.Fleet_Join_FullMethodName:                                            certificateNone,
	fleetv1.Fleet_Renew_FullMethodName:                                           certificateMaybeExpired,
	fleetv1.Fleet_Report_FullMethodName:                                          certificateValid,
	discovery.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName: certificateValid,
}

type callerKey struct{}

// caller is who calls and for whom; only the interceptors make one.
type caller struct {
	tenant.Actor
	// The tenant the call acts for; empty where it acts for none or for all.
	tenant string
}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// authorize says who calls, or why they may not. request may be nil where it is not known yet.
func (s *Server) authorize(ctx context.Context, method string, request any) (caller, error) {
	r, ok := adminAccess[method]
	if !ok {
		return caller{}, status.Errorf(codes.PermissionDenied, "nobody may call %s", method)
	}
	actor, err := s.Registry.Authenticate(bearer(ctx))
	if err != nil {
		return caller{}, status.Error(codes.Unauthenticated, err.Error())
	}
	c := caller{Actor: actor}
	if actor.Role < r.role {
		return c, status.Errorf(codes.PermissionDenied, "role %s may not do this; it needs %s", actor.Role, r.role)
	}
	if request == nil || r.scope == platformWide {
		return c, nil
	}
	named, ok := request.(interface{ GetTenant() string })
	if !ok {
		return c, status.Errorf(codes.Internal, "%s has no tenant", method)
	}
	c.tenant = named.GetTenant()
	switch {
	case actor.Role != tenant.PlatformAdmin && c.tenant == "":
		c.tenant = actor.Tenant
	case actor.Role != tenant.PlatformAdmin && c.tenant != actor.Tenant:
		// The same whether the tenant is there or not: who may not act for it does not learn which.
		return c, status.Errorf(codes.PermissionDenied, "this token may not act for tenant %q", c.tenant)
	case c.tenant == "" && r.scope == oneTenant:
		c.tenant = tenant.Default
	}
	return c, nil
}

func bearer(ctx context.Context) string {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

func (s *Server) adminUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	start := s.Now()
	c, err := s.authorize(ctx, info.FullMethod, request)
	var response any
	if err == nil {
		response, err = handle(context.WithValue(ctx, callerKey{}, c), request)
		err = statusOf(err)
	}
	s.audit(ctx, info.FullMethod, c, start, err)
	return response, err
}

func (s *Server) adminStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	start := s.Now()
	authorized := &authorizedStream{ServerStream: stream, server: s, method: info.FullMethod, ctx: stream.Context()}
	var err error
	// Who may not call at all is told before the request is read.
	if authorized.caller, err = s.authorize(stream.Context(), info.FullMethod, nil); err == nil {
		err = statusOf(handle(server, authorized))
	}
	s.audit(stream.Context(), info.FullMethod, authorized.caller, start, err)
	return err
}

// authorizedStream checks the tenant of the one request of a server stream, before its handler sees it.
type authorizedStream struct {
	grpc.ServerStream
	server *Server
	method string
	caller caller
	ctx    context.Context // of this one call, replaced when the caller is known
}

func (a *authorizedStream) Context() context.Context { return a.ctx }

func (a *authorizedStream) RecvMsg(m any) error {
	if err := a.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	c, err := a.server.authorize(a.ServerStream.Context(), a.method, m)
	a.caller = c
	if err != nil {
		return err
	}
	a.ctx = context.WithValue(a.ServerStream.Context(), callerKey{}, c)
	return nil
}

// audit writes one line for each admin call, allowed or not.
func (s *Server) audit(ctx context.Context, method string, c caller, start time.Time, err error) {
	level, verdict := slog.LevelInfo, "allow"
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated:
		level, verdict = slog.LevelWarn, "deny"
	}
	attrs := []slog.Attr{
		slog.String("method", method[strings.LastIndexByte(method, '/')+1:]), slog.String("verdict", verdict),
		slog.String("actor", c.Name), slog.String("tenant", c.tenant),
		slog.String("code", status.Code(err).String()), slog.Duration("duration", s.Now().Sub(start)),
	}
	if err != nil {
		attrs = append(attrs, slog.String("err", status.Convert(err).Message()))
	}
	s.Log.LogAttrs(ctx, level, "admin call", attrs...)
}

type peerKey struct{}

func peerOf(ctx context.Context) mtls.Peer {
	p, _ := ctx.Value(peerKey{}).(mtls.Peer)
	return p
}

// admit says which proxy calls, or why it may not.
func (s *Server) admit(ctx context.Context, method string) (mtls.Peer, error) {
	need, ok := fleetAccess[method]
	if !ok {
		return mtls.Peer{}, status.Errorf(codes.PermissionDenied, "nobody may call %s", method)
	}
	if need == certificateNone {
		return mtls.Peer{}, nil
	}
	p, err := mtls.PeerFromContext(ctx)
	if errors.Is(err, mtls.ErrExpired) && need == certificateMaybeExpired {
		err = nil
	}
	if err == nil && p.ID.ControlPlane() {
		err = errors.New("the control plane's own certificate is no proxy's")
	}
	if err != nil {
		return p, status.Error(codes.Unauthenticated, err.Error())
	}
	if err := s.Registry.Admit(p.ID.Group, p.ID.Proxy); err != nil {
		return p, status.Error(codes.PermissionDenied, err.Error())
	}
	return p, nil
}

func (s *Server) fleetUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	p, err := s.admit(ctx, info.FullMethod)
	if err != nil {
		s.refuseProxy(ctx, info.FullMethod, p, err)
		return nil, err
	}
	response, err := handle(context.WithValue(ctx, peerKey{}, p), request)
	return response, statusOf(err)
}

// fleetStream lets a stream in. That it ends with its certificate, or when that is revoked, is the stream's own business.
func (s *Server) fleetStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	p, err := s.admit(stream.Context(), info.FullMethod)
	if err != nil {
		s.refuseProxy(stream.Context(), info.FullMethod, p, err)
		return err
	}
	return handle(server, stream)
}

func (s *Server) refuseProxy(ctx context.Context, method string, p mtls.Peer, err error) {
	s.Log.LogAttrs(ctx, slog.LevelWarn, "proxy call", slog.String("method", method[strings.LastIndexByte(method, '/')+1:]),
		slog.String("verdict", "deny"), slog.String("group", p.ID.Group), slog.String("proxy", p.ID.Proxy), slog.Any("err", err))
}

// statusOf gives errors their code, once, at the edge.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	var invalid *Invalid
	var conflict *Conflict
	var missing *Missing
	switch {
	case errors.As(err, &invalid):
		return invalid.status()
	case errors.As(err, &conflict):
		return status.Error(codes.Aborted, conflict.Reason)
	case errors.As(err, &missing):
		return status.Error(codes.NotFound, missing.Reason)
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}

func invalidArgument(format string, args ...any) error {
	return status.Error(codes.InvalidArgument, fmt.Sprintf(format, args...))
}
