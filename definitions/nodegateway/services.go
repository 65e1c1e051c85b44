package nodegateway

import (
	"fmt"
	"slices"
	"strings"
)

// service is a service of the definitions.
type service struct {
	name, path   string
	authenticate bool
	methods      []string
	upstream     string
	// setting is the service in the settings, and oldPath its path there.
	setting value
	oldPath string
}

func (i *importer) readServices(root value, settings object) {
	v, ok := settings.get("services")
	if !ok {
		i.problem(root, "a gateway without services has an empty list: \"services\": []", "services is missing")
		return
	}
	list, ok := v.data.([]value)
	if !ok {
		i.problem(v, "write a list of objects, each with "+strings.Join(serviceSettings, ", "), "is %s, not a list", v.kind())
		return
	}
	i.settings["services"] = v
	for _, item := range list {
		i.readService(item)
	}
}

func (i *importer) readService(v value) {
	settings, ok := v.data.(object)
	if !ok {
		i.problem(v, "write an object with "+strings.Join(serviceSettings, ", "), "is %s, not a service", v.kind())
		return
	}
	for _, m := range settings {
		if !slices.Contains(serviceSettings, m.name) {
			i.unknown(m.value, m.name, serviceSettings)
		}
	}
	s := service{setting: v}
	field := fmt.Sprintf("services[%d]", len(i.services))
	s.name = i.text(v, settings, "name", field+".name", "give it a name of its own, such as \"orders\"")
	s.oldPath = i.text(v, settings, "path", field+".path", "write the beginning of its URLs, such as \"/orders\"")
	s.upstream = i.text(v, settings, "upStream", field+".upstreams", "write where the service runs, such as \"http://orderservice\"")
	s.upstream = strings.TrimSuffix(s.upstream, "/")
	s.path = s.oldPath
	if trimmed := strings.TrimRight(s.oldPath, "/"); trimmed != "" {
		s.path = trimmed
	}
	if !i.isNew(&s) {
		return
	}
	i.settings[field] = v
	i.services = append(i.services, s)
	added := &i.services[len(i.services)-1]
	i.notePath(added, field)
	i.readAuthenticate(added, settings, field)
	i.readMethods(added, settings, field)
}

// text returns a required text of a service.
func (i *importer) text(service value, settings object, name, field, remedy string) string {
	v, ok := settings.get(name)
	if !ok {
		i.problem(service, remedy, "%s is missing", name)
		return ""
	}
	i.settings[field] = v
	text, ok := v.data.(string)
	if !ok {
		i.problem(v, remedy, "is %s, not a text", v.kind())
	}
	return text
}

// isNew compares s with the services before it. If one of them took all of its requests, s is left out.
func (i *importer) isNew(s *service) bool {
	for _, earlier := range i.services {
		samePath := s.path != "" && strings.EqualFold(earlier.path, s.path)
		switch {
		case samePath && earlier.took(s.oldPath):
			i.notes++
			i.general = append(i.general, fmt.Sprintf("%s (%s) is left out: it has the path of %s, which took all of its requests.",
				s.setting.path, shown(s.name), earlier.setting.path))
			return false
		case samePath:
			i.problem(s.setting, "remove the one that is not used", "%s is also the path of %s", shown(s.oldPath), earlier.setting.path)
			return false
		case s.name != "" && earlier.name == s.name:
			i.problem(s.setting, "give each service a name of its own", "%s is also the name of %s", shown(s.name), earlier.setting.path)
			return false
		}
	}
	return true
}

// took reports whether the old gateway sent all requests that begin with path to s: it took the first service with
// whose path the lower-cased URL began.
func (s *service) took(path string) bool { return s.matched() && strings.HasPrefix(path, s.oldPath) }

// matched reports whether the old gateway sent any request to s.
func (s *service) matched() bool { return strings.ToLower(s.oldPath) == s.oldPath }

// notePath notes what changes by the path of a service.
func (i *importer) notePath(s *service, field string) {
	if !s.matched() {
		i.note(field+".path", i.settings[field+".path"], "see that this is meant",
			"the old gateway compared the lower-cased URL with %s, so this service got no request; it does now", shown(s.oldPath))
	}
	if s.path != s.oldPath {
		i.note(field+".path", i.settings[field+".path"], "see that this is meant",
			"%s took only what is below it; %s takes itself too", shown(s.oldPath), shown(s.path))
	}
	for _, earlier := range i.services[:len(i.services)-1] {
		if earlier.took(s.oldPath) {
			i.note(field+".path", i.settings[field+".path"], "see that this is meant",
				"%s with the path %s comes first, and took its requests; the longest path wins now", earlier.setting.path, shown(earlier.oldPath))
			return
		}
	}
}

func (i *importer) readAuthenticate(s *service, settings object, field string) {
	v, ok := settings.get("authenticate")
	s.authenticate = true
	if !ok {
		i.note(field+".authenticate", value{path: s.setting.path}, "write false if it is public", "has no authenticate; a token is needed now")
		return
	}
	i.settings[field+".authenticate"] = v
	if s.authenticate, ok = v.data.(bool); !ok {
		i.problem(v, "write true or false, without quotes", "is %s, not true or false", v.kind())
	}
}

func (i *importer) readMethods(s *service, settings object, field string) {
	v, ok := settings.get("allowedMethods")
	if !ok {
		i.note(field, s.setting, "add allowed_methods", "has no allowedMethods; the default methods are allowed, and others get 405")
		return
	}
	i.settings[field+".allowed_methods"] = v
	s.methods = i.texts(v, field+".allowed_methods", "methods, such as [\"GET\", \"POST\"]")
	if list, isList := v.data.([]value); isList && len(list) == 0 {
		i.problem(v, "list the methods, or remove the line for the default methods", "is an empty list")
	}
	for n, method := range s.methods {
		s.methods[n] = strings.ToUpper(method)
		if slices.Contains(s.methods[:n], s.methods[n]) {
			i.problem(i.settings[fmt.Sprintf("%s.allowed_methods[%d]", field, n)], "remove one of them", "%s is in the list twice", shown(method))
		}
	}
	if slices.Contains(s.methods, "OPTIONS") {
		i.note(field+".allowed_methods", v, "remove OPTIONS if the service does not answer it",
			"the old gateway answered OPTIONS by itself; now only preflights are answered, and other OPTIONS are sent to the service")
	}
}
