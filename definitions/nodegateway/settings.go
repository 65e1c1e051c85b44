package nodegateway

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// loginPath is what the old gateway put behind authenticationServiceUrl.
const loginPath = "/users/authenticate"

// The settings that the old gateway reads.
var (
	gatewaySettings = []string{"port", "origins", "authenticationServiceUrl", "services"}
	serviceSettings = []string{"name", "path", "authenticate", "allowedMethods", "upStream"}
)

// read reads the whole settings.
func (i *importer) read(root value) {
	i.settings[""] = root
	settings, ok := root.data.(object)
	if !ok {
		i.problem(root, "write an object with services and authenticationServiceUrl", "the settings are %s", root.kind())
		return
	}
	for _, m := range settings {
		switch {
		case slices.Contains(gatewaySettings, m.name):
		case strings.HasPrefix(strings.ToLower(m.name), "redis"):
			i.notes++
			i.general = append(i.general, m.path+" is not part of the definitions: give --redis URL to gatepost, or set GATEPOST_REDIS.")
		default:
			i.unknown(m.value, m.name, gatewaySettings)
		}
	}
	i.readPort(settings)
	i.readOrigins(settings)
	i.readServices(root, settings)
	i.readAuthenticator(settings)
	i.addGeneral()
}

// unknown reports a setting that cannot be translated. It is not dropped, because it may have kept somebody out.
func (i *importer) unknown(v value, name string, known []string) {
	plain := strings.NewReplacer("_", "", "-", "")
	remedy := "the settings here are " + strings.Join(known, ", ") + "; remove it, and add to the result what it did"
	for _, candidate := range known {
		if strings.EqualFold(plain.Replace(name), candidate) {
			remedy = "did you mean " + candidate + "?"
		}
	}
	i.problem(v, remedy, "unknown setting")
}

func (i *importer) readPort(settings object) {
	i.listen = "0.0.0.0:5500"
	v, ok := settings.get("port")
	if !ok {
		return
	}
	switch port := v.data.(type) {
	case json.Number:
		i.listen = "0.0.0.0:" + port.String()
	case string:
		i.listen = "0.0.0.0:" + port
	default:
		i.problem(v, "write a number, such as 5500", "is %s, not a port", v.kind())
	}
	i.settings["listen"] = v
}

func (i *importer) readOrigins(settings object) {
	v, ok := settings.get("origins")
	if !ok || v.data == nil {
		return
	}
	i.settings["origins"] = v
	i.origins = i.texts(v, "origins", "the origins that may call, such as [\"https://shop.example\"]")
	if list, isList := v.data.([]value); isList && len(list) == 0 {
		i.problem(v, "remove it if every origin may call, or list the origins", "is an empty list, which may have kept every origin out")
	}
	if len(i.origins) > 0 {
		i.note("origins", v, "list an origin that they can send, or remove origins",
			"a request without a listed Origin gets 401 on every path, as before, and so do programs and health checks that send none")
	}
}

// texts returns the texts in a list, without those that are in it already.
func (i *importer) texts(v value, field, remedy string) (all []string) {
	list, ok := v.data.([]value)
	if !ok {
		i.problem(v, "write a list of "+remedy, "is %s, not a list", v.kind())
		return nil
	}
	for _, item := range list {
		text, isText := item.data.(string)
		switch {
		case !isText:
			i.problem(item, "write "+remedy, "is %s, not a text", item.kind())
		case slices.Contains(all, text):
			i.problem(item, "remove one of them", "%s is in the list twice", shown(text))
		default:
			i.settings[fmt.Sprintf("%s[%d]", field, len(all))] = item
			all = append(all, text)
		}
	}
	return all
}

func (i *importer) readAuthenticator(settings object) {
	v, ok := settings.get("authenticationServiceUrl")
	if !ok || v.data == nil {
		i.notes++
		i.general = append(i.general, "The settings have no authenticationServiceUrl, so nobody can log in: add tokens.authenticator.url.")
		return
	}
	i.settings["tokens.authenticator.url"] = v
	url, ok := v.data.(string)
	switch {
	case !ok:
		i.problem(v, "write its address, such as \"http://authservice\"", "is %s, not an address", v.kind())
	case strings.ContainsAny(url, "?#"):
		i.problem(v, "write the address without it; "+loginPath+" is put behind it", "has a query or a fragment")
	}
	i.authenticator = strings.TrimSuffix(url, "/") + loginPath
}
