package api

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// Delete removes one object.
func (a admin) Delete(ctx context.Context, r *adminv1.DeleteRequest) (*adminv1.ApplyResponse, error) {
	c := callerOf(ctx)
	space, kind, err := a.place(c, r.GetKind())
	if err != nil {
		return nil, err
	}
	out, err := a.Publisher.Submit(ctx, Edit{
		// As with Apply the revision is the caller's tenant's, also of what belongs to none: that is what can be waited for.
		Tenant: c.tenant, Actor: c.Name, Comment: r.GetComment(), IfRevision: r.GetIfRevision(),
		Plan: func(_ context.Context, at World) ([]Change, error) {
			view, ok := at.View(space)
			if !ok {
				return nil, noTenant(space)
			}
			key, err := find(view.Objects, kind, r.GetName(), c.tenant)
			if err != nil {
				return nil, err
			}
			change := Change{Tenant: space, Remove: []string{key}}
			found := validate(view, change)
			object := view.Objects.Get(key).Object
			if set := object.GetSet(); set != "" {
				found = append(found, resource.Diagnose(object, severityNote, "",
					fmt.Sprintf("%s belongs to set %q: the next apply of that set makes it again", key, set), "remove it from the set's file too"))
			}
			change.Diagnostics = found
			return []Change{change}, refuse(found)
		},
	})
	if err != nil {
		return nil, err
	}
	return a.response(c.tenant, out), nil
}

// Rollback makes a new revision with the content of an old one, sealed secrets included.
func (a admin) Rollback(ctx context.Context, r *adminv1.RollbackRequest) (*adminv1.ApplyResponse, error) {
	c := callerOf(ctx)
	comment := r.GetComment()
	if comment == "" {
		comment = fmt.Sprintf("rollback to %d", r.GetTo())
	}
	out, err := a.Publisher.Submit(ctx, Edit{
		Tenant: c.tenant, Actor: c.Name, Comment: comment,
		Plan: func(ctx context.Context, at World) ([]Change, error) { return a.rollback(ctx, at, c.tenant, r.GetTo()) },
	})
	if err != nil {
		return nil, err
	}
	return a.response(c.tenant, out), nil
}

func (a admin) rollback(ctx context.Context, at World, name string, to int64) ([]Change, error) {
	view, ok := at.View(name)
	if !ok {
		return nil, noTenant(name)
	}
	then, err := a.at(ctx, name, to)
	if err != nil {
		return nil, err
	}
	change := Change{Tenant: name}
	for o := range then.All() {
		if !same(view.Objects.Get(o.Key()), o.Object) {
			change.Put = append(change.Put, o.Object)
		}
	}
	for o := range view.Objects.All() {
		if then.Get(o.Key()) == nil {
			change.Remove = append(change.Remove, o.Key())
		}
	}
	if change.Sealed, err = a.unseal(ctx, name, view, change.Put); err != nil {
		return nil, err
	}
	change.Diagnostics = append(validate(view, change), powers(view, change.Put)...)
	return []Change{change}, refuse(change.Diagnostics)
}

// unseal reads the sealed values that objects name and the present ones do not. Old content keeps its values for as
// long as the log reaches it.
func (s *Server) unseal(ctx context.Context, name string, view *View, objects []*adminv1.Object) (map[string][]byte, error) {
	missing := map[string]bool{}
	for _, o := range objects {
		for _, c := range resource.Credentials(o) {
			if fp := c.GetSealed(); fp != "" && view.Sealed[fp] == 0 {
				missing[fp] = true
			}
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	sealed, err := store.Of(s.Store, name).Sealed(ctx)
	if err != nil {
		return nil, err
	}
	values := map[string][]byte{}
	for fp := range missing {
		if sealed[fp] == nil {
			continue // validate names the object
		}
		if values[fp], err = s.Vault.Of(name).Open(fp, sealed[fp]); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// CreateTenant makes a tenant with no objects.
func (a admin) CreateTenant(ctx context.Context, r *adminv1.CreateTenantRequest) (*adminv1.TenantResponse, error) {
	if err := tenant.CheckName("tenant", r.GetName()); err != nil {
		return nil, invalidArgument("%v", err)
	}
	parsed, err := policy.ParseGrants(r.GetGrants())
	if err != nil {
		return nil, invalidArgument("%v", err)
	}
	grants := parsed.Words()
	return a.changeTenant(ctx, Change{Tenant: r.GetName(), Create: true, Grants: &grants}, "tenant create")
}

// AllowTenant replaces a tenant's grants. What they no longer cover is refused by proxies from then on.
func (a admin) AllowTenant(ctx context.Context, r *adminv1.AllowTenantRequest) (*adminv1.TenantResponse, error) {
	parsed, err := policy.ParseGrants(r.GetGrants())
	if err != nil {
		return nil, invalidArgument("%v", err)
	}
	grants := parsed.Words()
	return a.changeTenant(ctx, Change{Tenant: r.GetName(), Grants: &grants}, "tenant allow "+strings.Join(grants, ","))
}

func (a admin) changeTenant(ctx context.Context, c Change, comment string) (*adminv1.TenantResponse, error) {
	_, err := a.Publisher.Submit(ctx, Edit{Tenant: c.Tenant, Actor: callerOf(ctx).Name, Comment: comment,
		Plan: func(_ context.Context, at World) ([]Change, error) {
			_, ok := at.View(c.Tenant)
			switch {
			case ok && c.Create:
				return nil, status.Errorf(codes.AlreadyExists, "tenant %q is there already", c.Tenant)
			case !ok && !c.Create, c.Tenant == tenant.Platform:
				return nil, noTenant(c.Tenant)
			}
			return []Change{c}, nil
		}})
	if err != nil {
		return nil, err
	}
	view, ok := a.Publisher.View(c.Tenant)
	if !ok {
		return nil, noTenant(c.Tenant) // deleted meanwhile
	}
	return tenantResponse(view), nil
}

func tenantResponse(v *View) *adminv1.TenantResponse {
	return &adminv1.TenantResponse{Name: v.Name, Grants: v.Grants, Revision: v.Revision}
}

// ListTenants returns all tenants by name.
func (a admin) ListTenants(context.Context, *adminv1.ListTenantsRequest) (*adminv1.ListTenantsResponse, error) {
	response := &adminv1.ListTenantsResponse{}
	for _, v := range a.Publisher.Views() {
		response.Tenants = append(response.Tenants, tenantResponse(v))
	}
	return response, nil
}

// DeleteTenant removes a tenant with all it has. Its tokens go first: one that outlived it would be good for the next
// tenant of that name. One that was made meanwhile goes afterwards, when no more are made.
func (a admin) DeleteTenant(ctx context.Context, r *adminv1.DeleteTenantRequest) (*adminv1.DeleteTenantResponse, error) {
	name := r.GetName()
	if _, ok := a.Publisher.View(name); !ok || name == tenant.Platform {
		return nil, noTenant(name)
	}
	if name == tenant.Default {
		return nil, status.Errorf(codes.FailedPrecondition, "tenant %q cannot be deleted: calls that name no tenant mean it", name)
	}
	this := func(tenant string) bool { return tenant == name }
	if err := a.Registry.RevokeTenants(ctx, this); err != nil {
		return nil, err
	}
	_, err := a.Publisher.Submit(ctx, Edit{Tenant: name, Actor: callerOf(ctx).Name, Comment: "tenant delete",
		Plan: func(_ context.Context, at World) ([]Change, error) {
			if _, ok := at.View(name); !ok {
				return nil, noTenant(name)
			}
			return []Change{{Tenant: name, Drop: true}}, nil
		}})
	if err != nil {
		return nil, err
	}
	return &adminv1.DeleteTenantResponse{}, a.Registry.RevokeTenants(context.WithoutCancel(ctx), this)
}

// PutGroup makes or replaces a group.
func (a admin) PutGroup(ctx context.Context, r *adminv1.PutGroupRequest) (*adminv1.GroupResponse, error) {
	if err := tenant.CheckName("group", r.GetName()); err != nil {
		return nil, invalidArgument("%v", err)
	}
	o := &adminv1.Object{Name: r.GetName(), Spec: &adminv1.Object_Group{Group: &adminv1.Group{Tenants: r.GetTenants()}}}
	_, err := a.Publisher.Submit(ctx, Edit{Tenant: tenant.Platform, Actor: callerOf(ctx).Name, Comment: "group put",
		Plan: func(_ context.Context, at World) ([]Change, error) {
			for _, name := range r.GetTenants() {
				if _, ok := at.View(name); !ok {
					return nil, noTenant(name)
				}
			}
			return []Change{{Tenant: tenant.Platform, Put: []*adminv1.Object{o}}}, nil
		}})
	if err != nil {
		return nil, err
	}
	return &adminv1.GroupResponse{Name: r.GetName(), Tenants: a.Publisher.Groups()[r.GetName()]}, nil
}

// ListGroups returns all groups with the tenants that they serve.
func (a admin) ListGroups(context.Context, *adminv1.ListGroupsRequest) (*adminv1.ListGroupsResponse, error) {
	response := &adminv1.ListGroupsResponse{}
	groups := a.Publisher.Groups()
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		response.Groups = append(response.Groups, &adminv1.GroupResponse{Name: name, Tenants: groups[name]})
	}
	return response, nil
}

// DeleteGroup removes a group. Its proxies serve nothing from then on, and its tenants fall to `default`.
func (a admin) DeleteGroup(ctx context.Context, r *adminv1.DeleteGroupRequest) (*adminv1.DeleteGroupResponse, error) {
	key := "group/" + r.GetName()
	_, err := a.Publisher.Submit(ctx, Edit{Tenant: tenant.Platform, Actor: callerOf(ctx).Name, Comment: "group delete",
		Plan: func(_ context.Context, at World) ([]Change, error) {
			if view, ok := at.View(tenant.Platform); !ok || view.Objects.Get(key) == nil {
				return nil, &Missing{Reason: fmt.Sprintf("there is no group %q", r.GetName())}
			}
			return []Change{{Tenant: tenant.Platform, Remove: []string{key}}}, nil
		}})
	return &adminv1.DeleteGroupResponse{}, err
}
