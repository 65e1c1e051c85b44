package revisions

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"google.golang.org/protobuf/reflect/protoreflect"

	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// Diff returns what differs between two states of the definitions, part by part and each in the unified form; empty
// where they say the same. Defaults are written out in both, and neither comments nor the order of services count. A
// nil Gateway is an empty one.
func Diff(oldName string, old *definitions.Gateway, newName string, now *definitions.Gateway) (string, error) {
	before, err := parts(old)
	if err != nil {
		return "", err
	}
	after, err := parts(now)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	for _, part := range names(before, after) {
		if bytes.Equal(before[part], after[part]) {
			continue
		}
		found := diff.Diff(oldName+": "+part, before[part], newName+": "+part, after[part])
		_, hunks, _ := bytes.Cut(found, []byte("\n")) // its first line names what the next two name
		out.Write(hunks)
	}
	return out.String(), nil
}

// Change says in a line what differs: "+orders -items ~users ~tokens".
func Change(old, now *definitions.Gateway) (string, error) {
	before, err := parts(old)
	if err != nil {
		return "", err
	}
	after, err := parts(now)
	if err != nil {
		return "", err
	}
	const most = 12 // a line is not longer than can be read
	var changes []string
	for _, part := range names(before, after) {
		if bytes.Equal(before[part], after[part]) {
			continue
		}
		sign := "~"
		switch {
		case before[part] == nil:
			sign = "+"
		case after[part] == nil:
			sign = "-"
		}
		changes = append(changes, sign+strings.TrimPrefix(part, servicePart))
	}
	switch more := len(changes) - most; {
	case len(changes) == 0:
		return "nothing that is served", nil
	case more > 0:
		return fmt.Sprintf("%s and %d more", strings.Join(changes[:most], " "), more), nil
	}
	return strings.Join(changes, " "), nil
}

// servicePart begins the name of the part that is a service; the other parts are the other fields.
const servicePart = "service "

// parts returns each part of the definitions as YAML.
func parts(gateway *definitions.Gateway) (map[string][]byte, error) {
	all := map[string][]byte{}
	if gateway == nil {
		return all, nil
	}
	g := gateway.Message()
	var failed error
	add := func(name string, alone *gatewayv1.Gateway) {
		text, err := definitions.Marshal(alone)
		text = bytes.TrimSuffix(text, []byte("services: []\n")) // how Marshal writes that there are none
		all[name], failed = text, errors.Join(failed, err)
	}
	g.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if field.Name() != "services" {
			alone := &gatewayv1.Gateway{}
			alone.ProtoReflect().Set(field, value)
			add(field.TextName(), alone)
		}
		return true
	})
	for _, service := range g.GetServices() {
		add(servicePart+service.GetName(), &gatewayv1.Gateway{Services: []*gatewayv1.Service{service}})
	}
	return all, failed
}

// names are the parts of either, sorted.
func names(a, b map[string][]byte) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}
