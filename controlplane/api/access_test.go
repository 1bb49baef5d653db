package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/sluicegate/sluice/controlplane/tenant"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	fleetv1 "github.com/sluicegate/sluice/proto/gen/sluice/fleet/v1"
)

// registered returns every method that a server answers, with a fresh request.
func registered(t *testing.T, g *grpc.Server) map[string]proto.Message {
	t.Helper()
	methods := map[string]proto.Message{}
	for service, info := range g.GetServiceInfo() {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range info.Methods {
			input := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(m.Name)).Input()
			kind, err := protoregistry.GlobalTypes.FindMessageByName(input.FullName())
			if err != nil {
				t.Fatal(err)
			}
			methods["/"+service+"/"+m.Name] = kind.New().Interface()
		}
	}
	return methods
}

func with(t *testing.T, token string) context.Context {
	return metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token))
}

// Every registered method stands in the table, and lets in exactly the roles that it says.
func TestEveryMethodHasItsRole(t *testing.T) {
	s, _ := newServer(t, newConnections())
	tokens := map[tenant.Role]string{}
	for _, role := range []tenant.Role{tenant.TenantViewer, tenant.TenantAdmin, tenant.PlatformAdmin} {
		of := "acme"
		if role == tenant.PlatformAdmin {
			of = ""
		}
		_, text, err := s.Registry.CreateAdminToken(t.Context(), role, of, "", 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		tokens[role] = text
	}
	methods := registered(t, s.Admin())
	if len(methods) != len(adminAccess) {
		t.Errorf("%d methods are registered, %d stand in the table", len(methods), len(adminAccess))
	}
	for method, request := range methods {
		r, ok := adminAccess[method]
		if !ok {
			t.Errorf("%s stands in no table", method)
			continue
		}
		for role, token := range tokens {
			c, err := s.authorize(with(t, token), method, request)
			if allowed := err == nil; allowed != (role >= r.role) {
				t.Errorf("%s as %s: %v, the table says %s", method, role, err, r.role)
			}
			if err == nil && r.scope != platformWide && role != tenant.PlatformAdmin && c.tenant != "acme" {
				t.Errorf("%s as %s acts for tenant %q", method, role, c.tenant)
			}
		}
		for _, bad := range []string{"", "nonsense", tokens[tenant.PlatformAdmin] + "x"} {
			if _, err := s.authorize(with(t, bad), method, request); status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s with a bad token: %v", method, err)
			}
		}
		if _, err := s.authorize(t.Context(), method, request); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s without a token: %v", method, err)
		}
	}
	if _, err := s.authorize(with(t, tokens[tenant.PlatformAdmin]), "/sluice.admin.v1.Admin/Invented", nil); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a method in no table: %v", err)
	}
}

// A tenant's token is refused for another tenant in the same words, whether that is there or not.
func TestNoTokenNamesAnotherTenant(t *testing.T) {
	s, p := newServer(t, newConnections())
	_, token, err := s.Registry.CreateAdminToken(t.Context(), tenant.TenantAdmin, "acme", "", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for method, request := range registered(t, s.Admin()) {
		if adminAccess[method].scope == platformWide {
			continue
		}
		var told []string
		for _, name := range []string{"default", "nobody", tenant.Platform} {
			field := request.ProtoReflect().Descriptor().Fields().ByName("tenant")
			request.ProtoReflect().Set(field, protoreflect.ValueOfString(name))
			handled := false
			_, err := s.adminUnary(with(t, token), request, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) {
				handled = true
				return nil, nil
			})
			if handled || status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s for tenant %q: %v", method, name, err)
			}
			told = append(told, strings.ReplaceAll(fmt.Sprint(err), name, "T"))
		}
		if told[0] != told[1] || told[0] != told[2] {
			t.Errorf("%s tells whether a tenant is there: %q", method, told)
		}
	}
	// The kinds above all tenants are refused too, and a platform's admin reaches them.
	ctx := context.WithValue(t.Context(), callerKey{}, caller{Actor: tenant.Actor{Role: tenant.TenantAdmin, Tenant: "acme"}, tenant: "acme"})
	hold(t, p.views[tenant.Platform], &adminv1.Object{Name: "platform", Spec: &adminv1.Object_Platform{Platform: &adminv1.Platform{}}})
	if _, err := (admin{Server: s}).Get(ctx, &adminv1.GetRequest{Kind: "Platform"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("Get of the platform as a tenant's admin: %v", err)
	}
	ctx = context.WithValue(t.Context(), callerKey{}, caller{Actor: tenant.Actor{Role: tenant.PlatformAdmin}, tenant: "default"})
	if _, err := (admin{Server: s}).Get(ctx, &adminv1.GetRequest{Kind: "Platform"}); err != nil {
		t.Errorf("Get of the platform as its admin: %v", err)
	}
}

func TestEveryProxyMethodStandsInTheTable(t *testing.T) {
	s, _ := newServer(t, newConnections())
	g := s.Proxies(func(r grpc.ServiceRegistrar) {
		discovery.RegisterAggregatedDiscoveryServiceServer(r, discovery.UnimplementedAggregatedDiscoveryServiceServer{})
	})
	for service, info := range g.GetServiceInfo() {
		for _, m := range info.Methods {
			method := "/" + service + "/" + m.Name
			_, err := s.admit(t.Context(), method)
			switch need, ok := fleetAccess[method]; {
			case !ok && status.Code(err) != codes.PermissionDenied:
				t.Errorf("%s stands in no table and is answered: %v", method, err)
			case ok && need == certificateNone && (method != fleetv1.Fleet_Join_FullMethodName || err != nil):
				t.Errorf("%s needs no certificate: %v", method, err)
			case ok && need != certificateNone && status.Code(err) != codes.Unauthenticated:
				t.Errorf("%s without a certificate: %v", method, err)
			}
		}
	}
}

func TestBearer(t *testing.T) {
	for header, want := range map[string]string{"Bearer x": "x", "bearer x ": "x", "Basic x": "", "x": "", "": ""} {
		if got := bearer(metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", header))); got != want {
			t.Errorf("bearer(%q) = %q, want %q", header, got, want)
		}
	}
	twice := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer a", "authorization", "Bearer b"))
	if got := bearer(twice); got != "" {
		t.Errorf("two headers gave %q", got)
	}
}

// A token of a tenant ends with it, also one that is made while it is deleted: the next tenant of that name is another's.
func TestTokensEndWithTheirTenant(t *testing.T) {
	s, p := newServer(t, newConnections())
	a := admin{Server: s}
	var tokens []string
	create := func() error {
		r, err := a.CreateToken(t.Context(), &adminv1.CreateTokenRequest{Type: adminv1.CreateTokenRequest_TYPE_ADMIN, Role: "tenant-admin", Tenant: "acme"})
		if err == nil {
			tokens = append(tokens, r.GetToken())
		}
		return err
	}
	if err := create(); err != nil {
		t.Fatal(err)
	}
	p.before = func() {
		if err := create(); err != nil {
			t.Error(err)
		}
	}
	if _, err := a.DeleteTenant(t.Context(), &adminv1.DeleteTenantRequest{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	if err := create(); err == nil {
		t.Error("a token was made for a tenant that is gone")
	}
	for i, token := range tokens {
		if _, err := s.Registry.Authenticate(token); !errors.Is(err, tenant.ErrToken) {
			t.Errorf("token %d outlived its tenant: %v", i, err)
		}
	}
}
