package main

import (
	"crypto/subtle"
	"encoding/json"
	"net/http"
)

// account is one user. A real user service keeps a slow hash of the password, never the password.
type account struct{ id, password string }

var accounts = map[string]account{
	"alice": {id: "user-1", password: "wonderland"},
	"bob":   {id: "user-2", password: "builder"},
}

// userService answers POST /users/authenticate: 200 with the header `userid`, by which Gatepost knows that it may issue
// a token and for whom, or 401. Its 200 has no body, so the client gets the one that Gatepost writes.
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
