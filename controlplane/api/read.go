package api

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

const defaultLogLimit = 100

// place is a kind in the space that holds it.
func (s *Server) place(c caller, kind string) (space, canonical string, err error) {
	canonical, err = resource.ParseKind(kind)
	if err != nil {
		return "", "", invalidArgument("%v", err)
	}
	if canonical != "platform" && canonical != "group" {
		return c.tenant, canonical, nil
	}
	if c.Role != tenant.PlatformAdmin {
		return "", "", status.Errorf(codes.PermissionDenied, "a %s belongs to no tenant; it needs role %s", canonical, tenant.PlatformAdmin)
	}
	return tenant.Platform, canonical, nil
}

// find resolves a name as users give it to the key of an object.
func find(objects store.Objects, kind, name, tenantName string) (string, error) {
	switch {
	case kind == "platform" && name == "":
		name = resource.PlatformName
	case kind == "tenant" && (name == "" || name == tenantName):
		name = resource.TenantName
	}
	key := kind + "/" + name
	if objects.Get(key) != nil {
		return key, nil
	}
	if kind == "target" && !strings.Contains(name, "/") {
		return findTarget(objects, name)
	}
	return "", &Missing{Reason: fmt.Sprintf("there is no %s %q", kind, name)}
}

func findTarget(objects store.Objects, name string) (string, error) {
	var keys, names []string
	for o := range objects.Kind("target") {
		if resource.TargetName(o.Object) == name {
			keys, names = append(keys, o.Key()), append(names, o.Name)
		}
	}
	switch len(keys) {
	case 0:
		return "", &Missing{Reason: fmt.Sprintf("there is no target %q", name)}
	case 1:
		return keys[0], nil
	}
	return "", invalidArgument("target %q is ambiguous; say one of %s", name, strings.Join(names, ", "))
}

// Get returns one object, as it is or as it was.
func (a admin) Get(ctx context.Context, r *adminv1.GetRequest) (*adminv1.Object, error) {
	c := callerOf(ctx)
	space, kind, err := a.place(c, r.GetKind())
	if err != nil {
		return nil, err
	}
	view, ok := a.Publisher.View(space)
	if !ok {
		return nil, noTenant(space)
	}
	objects := view.Objects
	if r.GetRevision() != 0 {
		if objects, err = a.at(ctx, space, r.GetRevision()); err != nil {
			return nil, err
		}
	}
	key, err := find(objects, kind, r.GetName(), c.tenant)
	if err != nil {
		return nil, err
	}
	return objects.Get(key).Object, nil
}

func (s *Server) at(ctx context.Context, space string, revision int64) (store.Objects, error) {
	objects, err := store.Of(s.Store, space).At(ctx, revision)
	if errors.Is(err, store.ErrNoRevision) {
		return objects, &Missing{Reason: fmt.Sprintf("revision %d of %q is not in the log; `sluice log` shows what is", revision, space)}
	}
	return objects, err
}

// List returns the tenant's objects in the order of their keys.
func (a admin) List(ctx context.Context, r *adminv1.ListRequest) (*adminv1.ListResponse, error) {
	c := callerOf(ctx)
	space, kind := c.tenant, ""
	if r.GetKind() != "" {
		var err error
		if space, kind, err = a.place(c, r.GetKind()); err != nil {
			return nil, err
		}
	}
	view, ok := a.Publisher.View(space)
	if !ok {
		return nil, noTenant(space)
	}
	response := &adminv1.ListResponse{Revision: view.Revision}
	for o := range view.Objects.All() {
		if kind == "" || o.Kind == kind {
			response.Objects = append(response.Objects, o.Object)
		}
	}
	if kind == "" || kind == "target" {
		response.Found = a.reports.found(space)
	}
	return response, nil
}

// Log returns what changed, the newest first.
func (a admin) Log(ctx context.Context, r *adminv1.LogRequest) (*adminv1.LogResponse, error) {
	name := callerOf(ctx).tenant
	if _, ok := a.Publisher.View(name); !ok {
		return nil, noTenant(name)
	}
	limit := int(r.GetLimit())
	if limit <= 0 {
		limit = defaultLogLimit
	}
	records := store.Of(a.Store, name)
	entries, err := records.Log(ctx, limit)
	if err != nil {
		return nil, err
	}
	response := &adminv1.LogResponse{}
	for _, e := range entries {
		before, after, err := records.Sides(ctx, e.Ops)
		if err != nil {
			return nil, fmt.Errorf("log of tenant %q at revision %d: %w", name, e.Revision, err)
		}
		response.Entries = append(response.Entries, &adminv1.LogEntry{
			Revision: e.Revision, Tenant: name, Actor: e.Actor, Time: timestamppb.New(e.Time), Comment: e.Comment, Changes: resource.Diff(before, after),
		})
	}
	return response, nil
}

// Explain tells where each policy of a target came from.
func (a admin) Explain(ctx context.Context, r *adminv1.ExplainRequest) (*adminv1.ExplainResponse, error) {
	c := callerOf(ctx)
	view, ok := a.Publisher.View(c.tenant)
	if !ok {
		return nil, noTenant(c.tenant)
	}
	key, err := find(view.Objects, "target", r.GetTarget(), c.tenant)
	if err != nil {
		return nil, err
	}
	explained, err := a.Publisher.Explain(ctx, c.tenant, strings.TrimPrefix(key, "target/"))
	if err != nil {
		return nil, err
	}
	explained = proto.CloneOf(explained)
	explained.Revision = view.Revision
	return explained, nil
}
