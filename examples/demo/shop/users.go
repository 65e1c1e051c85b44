package main

import (
	"crypto/subtle"
	"encoding/json"
	"net/http"
)

// account is a user's id and password. A real user service stores a slow hash of the password
// instead.
type account struct{ id, password string }

var accounts = map[string]account{
	"alice": {id: "user-1", password: "wonderland"},
	"bob":   {id: "user-2", password: "builder"},
}

// userService handles POST /users/authenticate. If the password is right, it returns 200 with the
// header `userid`, and Gatepost issues a token for that id. Otherwise it returns 401. The 200 has
// no body, so the client gets Gatepost's own response body.
func userService() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /users/authenticate", func(w http.ResponseWriter, r *http.Request) {
		var login struct{ Username, Password string }
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&login); err != nil {
			answer(w, http.StatusBadRequest, `Send {"username": "…", "password": "…"}`)
			return
		}
		user, known := accounts[login.Username]
		right := subtle.ConstantTimeCompare([]byte(user.password), []byte(login.Password)) == 1
		if !known || !right {
			answer(w, http.StatusUnauthorized, "Wrong user name or password")
			return
		}
		w.Header().Set("userid", user.id)
	})
	return mux
}
