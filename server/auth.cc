#include "server/auth.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/id.h"
#include "base/random.h"
#include "base/status.h"
#include "base/view.h"

namespace nibble::server {
namespace {

using nlohmann::json;

constexpr int kClientBit = static_cast<int>(Role::kClient);
constexpr int kWorkerBit = static_cast<int>(Role::kWorker);
constexpr int kAdminBit = static_cast<int>(Role::kAdmin);
constexpr int kUsers = kClientBit | kAdminBit;

struct MethodRow {
  std::string_view method;
  int roles;
};
// Every method of every service of ours; auth_test walks the descriptors against it.
constexpr MethodRow kMethods[] = {
    {"/nibble.v1.JobService/PlanJob", kUsers},
    {"/nibble.v1.JobService/CreateJob", kUsers},
    {"/nibble.v1.JobService/GetJob", kUsers},
    {"/nibble.v1.JobService/ExplainJob", kUsers},
    {"/nibble.v1.JobService/ListJobs", kUsers},
    {"/nibble.v1.JobService/UpdateJob", kUsers},
    {"/nibble.v1.JobService/CancelJob", kUsers},
    {"/nibble.v1.JobService/PauseJob", kUsers},
    {"/nibble.v1.JobService/ResumeJob", kUsers},
    {"/nibble.v1.JobService/DeleteJob", kUsers},
    {"/nibble.v1.JobService/WatchJob", kUsers},
    {"/nibble.v1.JobService/ListJobEvents", kUsers},
    {"/nibble.v1.JobService/QueryMetrics", kUsers},
    {"/nibble.v1.JobService/ListCheckpoints", kUsers},
    {"/nibble.v1.BlobService/BeginUpload", kUsers},
    {"/nibble.v1.BlobService/Upload", kUsers},
    {"/nibble.v1.BlobService/GetUpload", kUsers},
    {"/nibble.v1.DatasetService/CreateDataset", kUsers},
    {"/nibble.v1.DatasetService/ValidateDataset", kUsers},
    {"/nibble.v1.DatasetService/PreviewDataset", kUsers},
    {"/nibble.v1.DatasetService/GetDataset", kUsers},
    {"/nibble.v1.DatasetService/ListDatasets", kUsers},
    {"/nibble.v1.DatasetService/DeleteDataset", kUsers},
    {"/nibble.v1.ModelService/RegisterModel", kUsers},
    {"/nibble.v1.ModelService/GetModel", kUsers},
    {"/nibble.v1.ModelService/ListModels", kUsers},
    {"/nibble.v1.ModelService/DeleteModel", kUsers},
    {"/nibble.v1.AdapterService/GetAdapter", kUsers},
    {"/nibble.v1.AdapterService/ListAdapters", kUsers},
    {"/nibble.v1.AdapterService/DeleteAdapter", kUsers},
    {"/nibble.v1.AdapterService/DownloadAdapter", kUsers},
    {"/nibble.v1.FleetService/ListWorkers", kUsers},
    {"/nibble.v1.FleetService/GetWorker", kUsers},
    {"/nibble.v1.FleetService/DrainWorker", kAdminBit},
    {"/nibble.v1.FleetService/UndrainWorker", kAdminBit},
    {"/nibble.v1.FleetService/DeleteWorker", kAdminBit},
    {"/nibble.worker.v1.WorkerService/Register", kWorkerBit},
    {"/nibble.worker.v1.WorkerService/Synchronize", kWorkerBit},
    {"/nibble.worker.v1.WorkerService/ReportProgress", kWorkerBit},
    {"/nibble.worker.v1.WorkerService/FetchBlob", kWorkerBit},
    {"/nibble.worker.v1.WorkerService/BeginBlob", kWorkerBit},
    {"/nibble.worker.v1.WorkerService/PutBlob", kWorkerBit},
};

std::string RandomHex(int words) {
  std::string hex;
  for (int i = 0; i < words; ++i) absl::StrAppend(&hex, absl::Hex(SystemEntropy(), absl::kZeroPad16));
  return hex;
}

absl::Status BadToken(std::string_view what) {
  return Error(Reason::kTokenInvalid,
               absl::StrCat(View(what), "; make one with `nibble-server token create` and pass it as "
                                        "\"authorization: Bearer <token>\""))
      .ToStatus();
}

// Held while a file is read, changed and written again: of two changes at a time neither is lost.
class ChangeLock {
 public:
  explicit ChangeLock(const std::string& path)
      : fd_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)), error_(fd_ < 0 ? errno : 0) {
    while (fd_ >= 0 && flock(fd_, LOCK_EX) != 0) {
      if (errno == EINTR) continue;
      error_ = errno;
      break;
    }
  }
  ~ChangeLock() {
    if (fd_ >= 0) close(fd_);
  }
  ChangeLock(const ChangeLock&) = delete;
  ChangeLock& operator=(const ChangeLock&) = delete;
  absl::Status status(const std::string& path) const {
    return error_ == 0 ? absl::OkStatus() : ErrnoStatus(error_, "lock " + path);
  }

 private:
  const int fd_;
  int error_;
};

json ToJson(const TokenRecord& record) {
  return {{"id", record.id},
          {"name", record.name},
          {"role", std::string(RoleName(record.role))},
          {"sha256", record.sha256},
          {"create_unix_us", record.create_unix_us},
          {"expire_unix_us", record.expire_unix_us}};
}

absl::StatusOr<std::vector<TokenRecord>> ParseTokens(const std::string& text, const std::string& path) {
  const auto broken = [&] {
    return Error(Reason::kTokenInvalid,
                 absl::StrCat(path, " is not a token file; restore it or delete it and make new tokens"))
        .ToStatus();
  };
  const json list = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) return broken();
  std::vector<TokenRecord> records;
  for (const json& item : list) {
    if (!item.is_object()) return broken();
    TokenRecord record;
    for (auto& [key, field] : {std::pair{"id", &record.id}, {"name", &record.name},
                               {"sha256", &record.sha256}}) {
      const auto it = item.find(key);
      if (it == item.end() || !it->is_string()) return broken();
      *field = it->get<std::string>();
    }
    for (auto& [key, field] : {std::pair{"create_unix_us", &record.create_unix_us},
                               {"expire_unix_us", &record.expire_unix_us}}) {
      const auto it = item.find(key);
      if (it == item.end() || !it->is_number_integer()) return broken();
      *field = it->get<int64_t>();
    }
    const auto role = item.find("role");
    if (role == item.end() || !role->is_string()) return broken();
    ASSIGN_OR_RETURN(record.role, RoleFromName(role->get<std::string>()));
    if (!IsSha256Hex(record.sha256)) return broken();
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace

std::string_view RoleName(Role role) {
  switch (role) {
    case Role::kClient: return "client";
    case Role::kWorker: return "worker";
    case Role::kAdmin: return "admin";
  }
  return "unknown";
}

absl::StatusOr<Role> RoleFromName(std::string_view name) {
  for (const Role role : {Role::kClient, Role::kWorker, Role::kAdmin}) {
    if (RoleName(role) == name) return role;
  }
  return Error::Field(Reason::kSpecInvalid, "role",
                      absl::StrCat("is \"", View(name), "\"; must be client, worker or admin"))
      .ToStatus();
}

int RolesOf(std::string_view method) {
  for (const MethodRow& row : kMethods) {
    if (row.method == method) return row.roles;
  }
  return 0;
}

namespace {

// What a caller without the right role is to come with.
std::string WhoMay(int roles) {
  std::string names;
  for (const Role role : {Role::kClient, Role::kWorker, Role::kAdmin}) {
    if ((roles & static_cast<int>(role)) == 0) continue;
    absl::StrAppend(&names, names.empty() ? "" : " or ", View(RoleName(role)));
  }
  return names.empty() ? "" : absl::StrCat("; that takes a token of the role ", names);
}

}  // namespace

absl::Status TokenFile::Refresh() {
  // Only a file that is not there holds no tokens. While one cannot be read or looked at, those that are
  // known stay: a disk that fails for a moment is no reason to turn everybody away.
  absl::StatusOr<std::string> read = ReadFile(path_, 16 << 20);
  if (!read.ok() && !absl::IsNotFound(read.status())) return read.status();
  std::string content = read.ok() ? *std::move(read) : "";
  std::lock_guard lock(mutex_);
  if (content == content_) return absl::OkStatus();
  std::vector<TokenRecord> records;
  if (!content.empty()) {
    ASSIGN_OR_RETURN(records, ParseTokens(content, path_));
  }
  records_ = std::move(records);
  content_ = std::move(content);
  return absl::OkStatus();
}

absl::Status TokenFile::Save(const std::vector<TokenRecord>& records) {
  json list = json::array();
  for (const TokenRecord& record : records) list.push_back(ToJson(record));
  RETURN_IF_ERROR(WriteFileAtomic(path_, list.dump(1) + "\n"));
  return Refresh();
}

bool IsCallerName(std::string_view name) {
  const size_t slash = name.find('/');
  if (slash == std::string_view::npos) return IsValidId(name);
  return IsValidId(name.substr(0, slash)) && IsValidId(name.substr(slash + 1));
}

absl::StatusOr<std::string> TokenFile::Create(std::string name, Role role, int64_t expire_unix_us,
                                              int64_t now_unix_us) {
  if (!IsCallerName(name)) {
    return Error::Field(Reason::kNameInvalid, "name",
                        "must be NAME or PROJECT/NAME, each of lower-case letters, digits and '-', "
                        "at most 63")
        .ToStatus();
  }
  const ChangeLock lock(path_ + ".lock");
  RETURN_IF_ERROR(lock.status(path_ + ".lock"));
  RETURN_IF_ERROR(Refresh());
  TokenRecord record;
  record.id = RandomHex(1).substr(0, 8);
  record.name = std::move(name);
  record.role = role;
  record.create_unix_us = now_unix_us;
  record.expire_unix_us = expire_unix_us;
  const std::string token = absl::StrCat("nbl_", record.id, "_", RandomHex(4));
  record.sha256 = Sha256Hex(token);
  std::vector<TokenRecord> records = List();
  records.push_back(record);
  RETURN_IF_ERROR(Save(records));
  return token;
}

absl::Status TokenFile::Revoke(std::string_view id) {
  const ChangeLock lock(path_ + ".lock");
  RETURN_IF_ERROR(lock.status(path_ + ".lock"));
  RETURN_IF_ERROR(Refresh());
  std::vector<TokenRecord> records = List();
  if (std::erase_if(records, [&](const TokenRecord& r) { return r.id == id; }) == 0) {
    return Error::Field(Reason::kNameInvalid, "id",
                        absl::StrCat("\"", View(id), "\" names no token; see `nibble-server token ls`"));
  }
  return Save(records);
}

std::vector<TokenRecord> TokenFile::List() const {
  std::lock_guard lock(mutex_);
  return records_;
}

absl::StatusOr<TokenRecord> TokenFile::Find(std::string_view token, int64_t now_unix_us) const {
  const std::string digest = Sha256Hex(token);
  std::lock_guard lock(mutex_);
  const TokenRecord* found = nullptr;
  for (const TokenRecord& record : records_) {
    // Of digests, and in constant time: how long it takes tells nothing about any token.
    if (CRYPTO_memcmp(record.sha256.data(), digest.data(), digest.size()) == 0) found = &record;
  }
  if (!found) return BadToken("the token is unknown or was revoked");
  if (found->expire_unix_us > 0 && found->expire_unix_us <= now_unix_us) {
    return BadToken("the token has expired");
  }
  return *found;
}

// "research/alice" belongs to the project research; a name without a slash to "default".
static void SetProject(std::string_view name, Caller& caller) {
  const size_t slash = name.find('/');
  if (slash != std::string_view::npos && IsValidId(name.substr(0, slash)))
    caller.tenant = name.substr(0, slash);
}

absl::StatusOr<Caller> Authorizer::Identify(std::string_view authorization,
                                            std::string_view certificate_name) const {
  Caller caller;
  caller.identity = "local";
  if (!required_) return caller;
  constexpr std::string_view kBearer = "Bearer ";
  if (!authorization.empty()) {
    if (!authorization.starts_with(kBearer)) return BadToken("the authorization is no bearer token");
    ASSIGN_OR_RETURN(const TokenRecord record,
                     tokens_->Find(authorization.substr(kBearer.size()), clock_->NowUnixUs()));
    caller.role = record.role;
    caller.identity = record.id;
    SetProject(record.name, caller);
    return caller;
  }
  const size_t colon = certificate_name.find(':');
  if (colon == std::string_view::npos) return BadToken("the call carries no token");
  auto role = RoleFromName(certificate_name.substr(0, colon));
  if (!role.ok()) return BadToken("the certificate names no role");
  caller.role = *role;
  caller.identity = certificate_name;
  SetProject(certificate_name.substr(colon + 1), caller);
  return caller;
}

absl::StatusOr<Caller> Authorizer::Check(std::string_view method, std::string_view authorization,
                                         std::string_view certificate_name) const {
  auto caller = Identify(authorization, certificate_name);
  if (!caller.ok()) {
    ++refusals_;
    return caller.status();
  }
  const int roles = RolesOf(method);
  // The owner of a loopback server is user and worker at once, but no method is open that has no row.
  const bool allowed =
      required_ ? (roles & static_cast<int>(caller->role)) != 0 : roles != 0;
  if (allowed) return caller;
  ++refusals_;
  return Error(Reason::kRoleNotAllowed,
               absl::StrCat("the role ", View(RoleName(caller->role)), " may not call ", View(method),
                            WhoMay(roles)))
      .With("method", std::string(method))
      .With("role", std::string(RoleName(caller->role)))
      .ToStatus();
}

bool IsLoopback(std::string_view address) {
  if (address.starts_with("unix:")) return true;
  if (address.starts_with("[")) return address.starts_with("[::1]:");
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos) return false;
  const std::string_view host = address.substr(0, colon);
  if (host == "localhost" || host == "::1") return true;
  if (!host.starts_with("127.")) return false;
  int dots = 0;
  for (const char c : host) {
    if (c == '.') {
      ++dots;
    } else if (c < '0' || c > '9') {
      return false;  // a name like 127.0.0.1.example.org
    }
  }
  return dots == 3;
}

}  // namespace nibble::server
