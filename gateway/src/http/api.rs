//! The routes of docs/protocol.md ("HTTP"): each makes the command that a WebSocket would have sent.

use std::sync::Arc;

use axum::Router;
use axum::body::Body as HttpBody;
use axum::extract::{Request, State as AxumState};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, patch, post, put};
use banyan_gateway_core::command::{Checked, check};
use banyan_proto::codes::Code;
use banyan_proto::id::Origin;
use banyan_proto::link::RoomCommand;
use banyan_proto::v1;
use banyan_proto::v1::client_frame::Command;
use banyan_proto::v1::server_frame::Body;
use serde::{Deserialize, Serialize};

use super::extract::{Asked, At, Bearer, Caller, ClientIp, Json, MaybeJson, Nothing};
use super::{Problem, State, middleware};
use crate::accounts::Granted;

type Result<T = Response> = std::result::Result<T, Problem>;
type Shared = AxumState<Arc<State>>;

pub(super) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/v1/signup", post(signup))
        .route("/v1/login", post(login))
        .route("/v1/logout", post(logout))
        .route("/v1/token", post(renew))
        .route("/v1/rooms", get(rooms).post(create_room))
        .route("/v1/rooms/{room}", patch(update_room))
        .route("/v1/rooms/{room}/join", post(join))
        .route("/v1/rooms/{room}/leave", post(leave))
        .route("/v1/rooms/{room}/members", get(members).post(add_members))
        .route("/v1/rooms/{room}/members/{user}", delete(remove_member))
        .route("/v1/rooms/{room}/members/{user}/role", put(set_role))
        .route("/v1/rooms/{room}/messages", get(history))
        .route("/v1/messages", post(send))
        .route("/v1/ws", get(websocket))
        .route("/chat", get(websocket))
        .method_not_allowed_fallback(async || middleware::wrong_method())
        .fallback(page)
        .layer(from_fn_with_state(Arc::clone(&state), middleware::around))
        .with_state(state)
}

#[derive(Deserialize)]
struct Signup {
    username: String,
    password: String,
    display_name: Option<String>,
}

async fn signup(AxumState(state): Shared, ClientIp(ip): ClientIp, Json(body): Json<Signup>) -> Result {
    let Signup { username, password, display_name } = body;
    let granted = state.accounts.signup(&username, &password, display_name.as_deref(), ip).await?;
    Ok(say(StatusCode::CREATED, &GrantedBody::from(granted)))
}

#[derive(Deserialize)]
struct Login {
    username: String,
    password: String,
}

async fn login(AxumState(state): Shared, ClientIp(ip): ClientIp, Json(body): Json<Login>) -> Result {
    let granted = state.accounts.login(&body.username, &body.password, ip).await?;
    Ok(say(StatusCode::OK, &GrantedBody::from(granted)))
}

#[derive(Default, Deserialize)]
struct Logout {
    all: Option<bool>,
}

async fn logout(
    AxumState(state): Shared,
    Bearer(token): Bearer,
    MaybeJson(body): MaybeJson<Logout>,
) -> Result {
    state.accounts.logout(&token, body.all.unwrap_or_default()).await?;
    let mut response = Response::new(HttpBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

async fn renew(
    AxumState(state): Shared,
    Bearer(token): Bearer,
    MaybeJson(Nothing {}): MaybeJson<Nothing>,
) -> Result {
    let granted = state.accounts.renew(&token).await?;
    Ok(say(StatusCode::OK, &GrantedBody::from(granted)))
}

#[derive(Serialize)]
struct GrantedBody {
    user: String,
    name: String,
    token: String,
    expires_at: u64,
}

impl From<Granted> for GrantedBody {
    fn from(granted: Granted) -> Self {
        let Granted { user, name, token, expires_at } = granted;
        Self { user: user.to_string(), name, token, expires_at: expires_at.0 }
    }
}

#[derive(Deserialize)]
struct RoomsQuery {
    after: Option<String>,
    limit: Option<u32>,
}

async fn rooms(AxumState(state): Shared, caller: Caller, Asked(query): Asked<RoomsQuery>) -> Result {
    let RoomsQuery { after, limit } = query;
    run(&state, &caller, Command::Rooms(v1::Rooms { after, limit })).await
}

async fn create_room(AxumState(state): Shared, caller: Caller, Json(body): Json<v1::CreateRoom>) -> Result {
    run(&state, &caller, Command::CreateRoom(body)).await
}

#[derive(Deserialize)]
struct UpdateBody {
    name: Option<String>,
    public: Option<bool>,
}

async fn update_room(
    AxumState(state): Shared,
    caller: Caller,
    At(room): At<String>,
    Json(UpdateBody { name, public }): Json<UpdateBody>,
) -> Result {
    run(&state, &caller, Command::UpdateRoom(v1::UpdateRoom { room, name, public })).await
}

async fn join(
    AxumState(state): Shared,
    caller: Caller,
    At(room): At<String>,
    MaybeJson(Nothing {}): MaybeJson<Nothing>,
) -> Result {
    run(&state, &caller, Command::Join(v1::Join { room })).await
}

async fn leave(
    AxumState(state): Shared,
    caller: Caller,
    At(room): At<String>,
    MaybeJson(Nothing {}): MaybeJson<Nothing>,
) -> Result {
    run(&state, &caller, Command::Leave(v1::Leave { room })).await
}

#[derive(Deserialize)]
struct MembersQuery {
    after: Option<String>,
    limit: Option<u32>,
}

async fn members(
    AxumState(state): Shared,
    caller: Caller,
    At(room): At<String>,
    Asked(MembersQuery { after, limit }): Asked<MembersQuery>,
) -> Result {
    run(&state, &caller, Command::Members(v1::Members { room, after, limit })).await
}

#[derive(Deserialize)]
struct AddBody {
    users: Vec<String>,
}

async fn add_members(
    AxumState(state): Shared,
    caller: Caller,
    At(room): At<String>,
    Json(AddBody { users }): Json<AddBody>,
) -> Result {
    run(&state, &caller, Command::AddMembers(v1::AddMembers { room, users })).await
}

async fn remove_member(
    AxumState(state): Shared,
    caller: Caller,
    At((room, user)): At<(String, String)>,
    MaybeJson(Nothing {}): MaybeJson<Nothing>,
) -> Result {
    run(&state, &caller, Command::RemoveMember(v1::RemoveMember { room, user })).await
}

#[derive(Deserialize)]
struct RoleBody {
    role: String,
}

async fn set_role(
    AxumState(state): Shared,
    caller: Caller,
    At((room, user)): At<(String, String)>,
    Json(RoleBody { role }): Json<RoleBody>,
) -> Result {
    use v1::Role::{Admin, Member, None, Owner, Reader};
    let roles = [None, Reader, Member, Admin, Owner];
    // A word that is no role is a number that is none: the rules have the words for it.
    let role = roles.into_iter().find(|known| known.word() == role).map_or(-1, |role| role as i32);
    run(&state, &caller, Command::SetRole(v1::SetRole { room, user, role })).await
}

#[derive(Deserialize)]
struct HistoryQuery {
    before: Option<u64>,
    after: Option<u64>,
    limit: Option<u32>,
}

async fn history(
    AxumState(state): Shared,
    caller: Caller,
    At(room): At<String>,
    Asked(HistoryQuery { before, after, limit }): Asked<HistoryQuery>,
) -> Result {
    run(&state, &caller, Command::History(v1::History { room, before, after, limit })).await
}

async fn send(AxumState(state): Shared, caller: Caller, Json(body): Json<v1::Send>) -> Result {
    run(&state, &caller, Command::Send(body)).await
}

/// Workers take upgrades by themselves; here come requests for it that are none, and upgrades that follow another
/// request on the same connection, as a balancer may send them that reuses its connections. That one is closed, so
/// the next try comes on a new one.
async fn websocket() -> Response {
    let problem = Problem::with_status(
        StatusCode::UPGRADE_REQUIRED,
        Code::BadRequest,
        "connect by WebSocket, as the first request of a connection",
    );
    let mut response = problem.into_response();
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade, close"));
    response
}

async fn page(AxumState(state): Shared, request: Request) -> Response {
    state.page.answer(request.method(), request.uri().path(), request.headers())
}

/// Checks, counts and carries out one command, and says its reply.
async fn run(state: &State, caller: &Caller, command: Command) -> Result {
    let person = &caller.0.person;
    let checked = check(command, &state.limits, &person.user)?;
    if let Checked::Room { command: RoomCommand::Send(_), .. } = &checked {
        let now_ms = u64::try_from(state.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        state.sends.take(person.user.as_str(), now_ms).map_err(|retry_after_ms| {
            Code::TooManyRequests.error_retry_after("too many sends", retry_after_ms)
        })?;
    }
    // No connection waits for the event of this send.
    let body = Box::pin(state.backend.run_command(person, Origin(0), checked)).await?;
    Ok(match &body {
        Body::Send(sent) if sent.duplicate => say(StatusCode::OK, sent),
        Body::Send(sent) => say(StatusCode::CREATED, sent),
        Body::CreateRoom(room) if room.created => say(StatusCode::CREATED, room),
        Body::CreateRoom(room) => say(StatusCode::OK, room),
        Body::Rooms(rooms) => say(StatusCode::OK, rooms),
        Body::History(page) => say(StatusCode::OK, page),
        Body::Members(members) => say(StatusCode::OK, members),
        Body::Join(joined) => say(StatusCode::OK, joined),
        Body::UpdateRoom(empty)
        | Body::AddMembers(empty)
        | Body::RemoveMember(empty)
        | Body::SetRole(empty)
        | Body::Leave(empty) => say(StatusCode::OK, empty),
        _ => {
            tracing::error!("an owner answered another command");
            return Err(Problem::new(Code::Internal, "the room's owner answered another command"));
        }
    })
}

fn say<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let body = match serde_json::to_vec(value) {
        Ok(body) => body,
        Err(error) => {
            // Only `data` that is not JSON could do that, and it is checked where it comes in.
            tracing::error!(%error, "a reply is not JSON");
            Vec::new()
        }
    };
    let mut response = Response::new(HttpBody::from(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
